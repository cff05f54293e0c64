"""`plan CONFIG --world W --gpu NAME`: memory, communication and time of a run before anyone queues for it."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_moe_grpo.config import RunConfig, load_config
from megatron_moe_grpo.errors import ConfigError

if TYPE_CHECKING:
    from megatron_moe_grpo.planning.workload import Workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("config", help="YAML recipe, see examples/")
    parser.add_argument("--world", type=int, required=True, help="number of GPUs, one process each")
    parser.add_argument("--gpu", default="h100-80g", help="a name of planning/hardware.py (default: h100-80g)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs that NVLink joins (default: 8)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )
    parser.add_argument(
        "--model-config", help="Hugging Face config.json, or a known name such as internvl3.5-1b-upcycled"
    )
    parser.add_argument("--prompt-tokens", type=int, help="prompt length, images included, instead of the data's")
    parser.add_argument("--images", type=int, default=1, help="images a prompt, where no data is read (default: 1)")
    parser.add_argument("--image-size", default="448x448", help="WIDTHxHEIGHT in pixels of each (default: 448x448)")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE", help="override one assumption of the estimate"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan; needs neither GPU nor weights."""
    config = load_config(arguments.config, arguments.overrides)
    _check_counts(arguments)
    # The CPU platform must be in place before anything imports megatron.core.
    import megatron_moe_grpo.mcore  # noqa: F401
    from megatron_moe_grpo.planning.assumptions import read_assumptions
    from megatron_moe_grpo.planning.hardware import Machine, find_gpu
    from megatron_moe_grpo.planning.memory import PlannedRun
    from megatron_moe_grpo.planning.plan import make_plan, plan_tables, plan_values
    from megatron_moe_grpo.training.console import summary_table

    assumptions = read_assumptions(arguments.assume)
    machine = Machine(find_gpu(arguments.gpu), arguments.gpus_per_node)
    hf_config, workload = _inputs(config, arguments)
    plan = make_plan(PlannedRun.of(config, hf_config, workload), arguments.world, machine, assumptions)
    for table in plan_tables(plan, arguments.world, arguments.gpu, machine, assumptions):
        print("\n".join([f"\n{table.title}", *table.lines]))
        if table.columns:
            print(summary_table(table.rows, table.columns))
    if arguments.json is not None:
        values = plan_values(plan, arguments.world, arguments.gpu, assumptions)
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _inputs(config: RunConfig, arguments: argparse.Namespace) -> tuple[dict[str, Any], "Workload"]:
    """The model's config.json and the step's lengths: from the checkpoint and the data where both are there."""
    from megatron_moe_grpo.benchmark.real_configs import REAL_CONFIGS
    from megatron_moe_grpo.planning.plan import read_model_config, workload_of_rows, workload_of_sizes

    name, assets = arguments.model_config, Path(config.model.checkpoint) / "assets"
    if name in REAL_CONFIGS:
        hf_config = REAL_CONFIGS[name]()
    else:
        hf_config = read_model_config(config, None if name is None else Path(name))
    is_told = arguments.prompt_tokens is not None or name is not None
    if not is_told and Path(config.data.train).exists():
        return hf_config, workload_of_rows(config, hf_config, assets)
    width, height = _size(arguments.image_size)
    return hf_config, workload_of_sizes(config, hf_config, arguments.prompt_tokens, arguments.images, (width, height))


def _check_counts(arguments: argparse.Namespace) -> None:
    counts = {"--world": arguments.world, "--gpus-per-node": arguments.gpus_per_node}
    if arguments.prompt_tokens is not None:
        counts["--prompt-tokens"] = arguments.prompt_tokens
    for option, count in counts.items():
        if count < 1:
            raise ConfigError("A count must be at least 1.", got=f"{option} {count}")
    if arguments.images < 0:
        raise ConfigError("A count must be at least 0.", got=f"--images {arguments.images}")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError("An image size is two numbers of pixels.", got=text, expected="WIDTHxHEIGHT, such as 448x448")
    return int(parts[0]), int(parts[1])
