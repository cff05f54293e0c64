"""Turns a dense Hugging Face InternVL folder into a mixture of experts:  python tools/upcycle_checkpoint.py IN OUT"""

import argparse
from pathlib import Path

from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, refuse_existing, write_hf_folder
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import UpcycleSettings, parameter_counts, upcycle_state, upcycled_config


def parse_arguments() -> argparse.Namespace:
    """Command line; the defaults are those of UpcycleSettings."""
    default = UpcycleSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="dense Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--num-experts", type=int, default=default.num_experts, help="N")
    parser.add_argument("--num-active", type=int, default=default.num_active, help="K")
    parser.add_argument("--expert-init", choices=("noise", "copy", "drop"), default=default.expert_init)
    parser.add_argument("--noise-scale", type=float, default=default.noise_scale, help="relative to the weight's std")
    parser.add_argument("--drop-fraction", type=float, default=default.drop_fraction, help="share of inner channels")
    parser.add_argument("--renormalise", action="store_true", help="divide the K weights by their sum")
    parser.add_argument("--router-init-std", type=float, default=default.router_init_std)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--count-only", action="store_true", help="print the parameter counts and write nothing")
    return parser.parse_args()


def upcycle_folder(source: Path, out: Path, settings: UpcycleSettings, count_only: bool) -> None:
    """Counts first, then reads, converts and writes."""
    config = read_hf_config(source)
    moe_config = upcycled_config(config, settings)
    family = family_of(config)
    print(f"dense:    {parameter_counts(family.weight_map(config), None)}")
    print(f"upcycled: {parameter_counts(family.weight_map(moe_config), settings.num_active)}")
    if count_only:
        return
    refuse_existing(out)
    moe_state, moe_config = upcycle_state(read_hf_state(source), config, settings)
    write_hf_folder(out, moe_state, moe_config, assets=source)
    print(f"written:  {out}")


def main() -> None:
    """Parse, upcycle, print."""
    arguments = vars(parse_arguments())
    source, out, count_only = (arguments.pop(name) for name in ("source", "out", "count_only"))
    try:
        upcycle_folder(source, out, UpcycleSettings(**arguments), count_only)
    except MoeGrpoError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
