"""`train CONFIG [--set a.b=c ...]`: supervised training, MoE-GRPO or GRPO, by `method`; `--dry-run` only checks."""

import argparse
from pathlib import Path

from megatron_moe_grpo.config import RunConfig, load_config
from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.training.run_status import begin_status, write_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("config", help="YAML recipe, see examples/")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set parallel.expert=1",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check recipe, model sizes, layout and every row; train nothing"
    )
    parser.add_argument(
        "--status-file", type=Path, help="write here how the run ended (JSON; docs/reliability.md lists the words)"
    )
    parser.add_argument("--world-size", type=int, help="with --dry-run: processes to plan for (default: the fewest)")


def run(arguments: argparse.Namespace) -> None:
    """Loads the recipe before torch, so that a mistyped key costs no start-up time."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        from megatron_moe_grpo.training.dry_run import dry_run

        print(dry_run(config, arguments.world_size))
        return
    begin_status(arguments.status_file)
    try:
        _train(config, arguments.status_file)
    except Exception as error:
        state = "failed" if isinstance(error, MoeGrpoError) else "crashed"
        write_status(arguments.status_file, state, None, str(error) or type(error).__name__)
        raise


def _train(config: RunConfig, status_file: Path | None) -> None:
    if config.method == "sft":
        from megatron_moe_grpo.training.train_sft import train_sft

        train_sft(config, status_file)
    else:
        from megatron_moe_grpo.training.train_grpo import train_grpo

        train_grpo(config, status_file)
