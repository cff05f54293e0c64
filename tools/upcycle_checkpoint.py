"""Turns a dense Hugging Face folder into a mixture of experts:  python tools/upcycle_checkpoint.py IN OUT"""

import argparse
from pathlib import Path
from typing import get_args

from megatron_moe_grpo.conversion.new_folder import refuse_existing
from megatron_moe_grpo.conversion.progress import progress_bar
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.conversion.tensor_bytes import source_bytes
from megatron_moe_grpo.conversion.verified_source import verified
from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.models.hf_folder import read_hf_config, write_safetensors_folder
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import upcycle, upcycled_config
from megatron_moe_grpo.models.upcycle_settings import ExpertInit, RouterInit, UpcycleSettings


def parse_arguments() -> argparse.Namespace:
    """Command line; the defaults are those of UpcycleSettings."""
    default = UpcycleSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="dense Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--num-experts", type=int, default=default.num_experts, help="N")
    parser.add_argument("--num-active", type=int, default=default.num_active, help="K")
    parser.add_argument("--layers", default=default.layers, help="which get experts: all, every:2, or such as 0-3,8")
    parser.add_argument("--granularity", type=int, default=default.granularity, help="m: experts of 1/m the width")
    parser.add_argument("--expert-init", choices=get_args(ExpertInit), default=default.expert_init)
    parser.add_argument("--noise-scale", type=float, default=default.noise_scale, help="relative to the weight's std")
    parser.add_argument("--drop-fraction", type=float, default=default.drop_fraction, help="share of inner channels")
    parser.add_argument("--renormalise", action="store_true", help="divide the K weights by their sum")
    parser.add_argument("--router-init", choices=get_args(RouterInit), default=default.router_init)
    parser.add_argument("--router-init-std", type=float, default=default.router_init_std)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--count-only", action="store_true", help="print the parameter counts and write nothing")
    parser.add_argument("--progress", action="store_true", help="show the progress bar where there is no terminal, too")
    return parser.parse_args()


def print_counts(config: dict, settings: UpcycleSettings) -> None:
    """Total and active parameters before and after."""
    moe_config = upcycled_config(config, settings)
    print(f"dense:    {parameter_counts(family_of(config).weight_map(config), None)}")
    moe_map = family_of(moe_config).weight_map(moe_config)
    print(f"upcycled: {parameter_counts(moe_map, settings.num_active)}")


def upcycle_folder(source: Path, out: Path, settings: UpcycleSettings, has_progress: bool) -> None:
    """Reads, draws and writes one tensor after the other."""
    refuse_existing(out)
    with verified(SafetensorsFolder(source), source) as dense:
        weights, moe_config = upcycle(dense, read_hf_config(source), settings)
        with progress_bar("upcycling", source_bytes(weights), is_forced=has_progress) as progress:
            modeling_file = family_of(moe_config).modeling_file
            write_safetensors_folder(
                out, weights, moe_config, assets=source, modeling_file=modeling_file, progress=progress
            )
    print(f"written:  {out}")


def main() -> None:
    """Parse, count, upcycle."""
    arguments = vars(parse_arguments())
    source, out, count_only, has_progress = (
        arguments.pop(name) for name in ("source", "out", "count_only", "progress")
    )
    try:
        settings = UpcycleSettings(**arguments)
        print_counts(read_hf_config(source), settings)
        if not count_only:
            upcycle_folder(source, out, settings, has_progress)
    except MoeGrpoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
