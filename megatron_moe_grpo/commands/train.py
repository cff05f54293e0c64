"""`train CONFIG [--set a.b=c ...]`: supervised or MoE-GRPO training, by `method`."""

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


def run(arguments: argparse.Namespace) -> None:
    """Loads the recipe before torch, so that a mistyped key costs no start-up time."""
    config = load_config(arguments.config, arguments.overrides)
    if config.method == "sft":
        from megatron_moe_grpo.training.train_sft import train_sft

        train_sft(config)
    else:
        from megatron_moe_grpo.training.train_grpo import train_grpo

        train_grpo(config)
