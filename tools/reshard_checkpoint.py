"""Rewrites a Megatron checkpoint so that each rank of a layout finds its part in files of its own, for fast loading.

python tools/reshard_checkpoint.py CHECKPOINT OUT --tensor 2 --pipeline 1 --expert 2 --expert-tensor 1

Every checkpoint loads under every layout without this.  One process does it, whatever the layout; optimizer state is
kept.  Prints what each rank would hold; --dry-run prints only that.
"""

import argparse
import warnings
from pathlib import Path

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion.progress import progress_bar
from megatron_moe_grpo.conversion.torch_threads import torch_on_one_thread
from megatron_moe_grpo.errors import CheckpointError, MoeGrpoError


def positive(text: str) -> int:
    """A number of ranks."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="must not exist")
    for name in ("tensor", "pipeline", "expert"):
        parser.add_argument(f"--{name}", type=positive, default=1, help=f"as parallel.{name} of a recipe")
    parser.add_argument("--expert-tensor", type=positive, help="as parallel.expert_tensor; left out: as --tensor")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--verify", action="store_true", help="afterwards compare every tensor, bit for bit")
    parser.add_argument("--progress", action="store_true", help="show the progress bar where there is no terminal, too")
    arguments = parser.parse_args()
    if (arguments.out is None) != arguments.dry_run:
        parser.error("either OUT or --dry-run")
    return arguments


@torch_on_one_thread()
def reshard(arguments: argparse.Namespace) -> None:
    """Plans, prints, writes, compares."""
    from megatron_moe_grpo.mcore.parallel import ParallelLayout
    from megatron_moe_grpo.mcore.resharding import Resharding, different_tensors
    from megatron_moe_grpo.models.build import build_model
    from megatron_moe_grpo.models.hf_folder import read_hf_config
    from megatron_moe_grpo.models.vlm import VisionLanguageModel

    parallel = ParallelConfig(
        tensor=arguments.tensor,
        pipeline=arguments.pipeline,
        expert=arguments.expert,
        expert_tensor=arguments.expert_tensor,
    )
    hf_config = read_hf_config(arguments.checkpoint / "assets")

    def build_stage(layout: ParallelLayout) -> VisionLanguageModel:
        return build_model(hf_config, parallel, "bf16", layout.is_first_stage, layout.is_last_stage)

    resharding = Resharding(arguments.checkpoint, parallel, build_stage)
    print(resharding.table())
    if arguments.dry_run:
        return
    with progress_bar("reshard", resharding.num_bytes, arguments.progress) as progress:
        resharding.write(arguments.out, progress)
    print(f"written: {arguments.out}")
    if arguments.verify:
        different = different_tensors(arguments.checkpoint, arguments.out)
        if different:
            raise CheckpointError("The new checkpoint holds other values.", got=", ".join(different[:5]))
        print("verified: every tensor is the same, bit for bit")


def main() -> None:
    """Parse and reshard."""
    arguments = parse_arguments()
    # Megatron warns at import about each optional kernel that is not installed.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    try:
        reshard(arguments)
    except MoeGrpoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
