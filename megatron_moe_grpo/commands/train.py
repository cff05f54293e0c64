"""`train CONFIG [--set a.b=c ...]`: supervised training, MoE-GRPO or GRPO, by `method`; `--dry-run` only checks."""

import argparse

from megatron_moe_grpo.config import load_config


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
    parser.add_argument("--world-size", type=int, help="with --dry-run: processes to plan for (default: the fewest)")


def run(arguments: argparse.Namespace) -> None:
    """Loads the recipe before torch, so that a mistyped key costs no start-up time."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        from megatron_moe_grpo.training.dry_run import dry_run

        print(dry_run(config, arguments.world_size))
    elif config.method == "sft":
        from megatron_moe_grpo.training.train_sft import train_sft

        train_sft(config)
    else:
        from megatron_moe_grpo.training.train_grpo import train_grpo

        train_grpo(config)
