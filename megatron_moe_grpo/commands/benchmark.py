"""`benchmark`: a training step by phase, the price of the routing trace, and TRL beside it if installed.

`benchmark conversion`: import and export of a real model's shapes beside `cp`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("what", nargs="?", choices=("step", "conversion"), default="step")
    parser.add_argument("--steps", type=int, default=6, help="steps a block")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of each program")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--model", default="internvl3.5-1b", help="conversion: whose shapes")
    parser.add_argument("--rounds", type=int, default=5, help="conversion: rounds of cp, import, export")
    parser.add_argument("--scratch", type=Path, help="conversion: folder on the disk to measure")


def run(arguments: argparse.Namespace) -> None:
    """Measures about a minute; prints one table."""
    # Read once, when the libraries load.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
    numbers, table = _measure_conversion(arguments) if arguments.what == "conversion" else _measure_step(arguments)
    print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _measure_step(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    import torch

    from megatron_moe_grpo.benchmark.run import run_benchmark
    from megatron_moe_grpo.benchmark.table import benchmark_table

    torch.set_num_threads(arguments.threads)
    numbers = run_benchmark(arguments.blocks, arguments.steps)
    return numbers, benchmark_table(numbers)


def _measure_conversion(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from megatron_moe_grpo.benchmark.conversion import run_conversion_benchmark
    from megatron_moe_grpo.benchmark.conversion_table import conversion_table
    from megatron_moe_grpo.benchmark.real_configs import REAL_CONFIGS
    from megatron_moe_grpo.errors import ConfigError

    if arguments.model not in REAL_CONFIGS:
        raise ConfigError("Unknown model.", got=arguments.model, expected=f"one of {', '.join(REAL_CONFIGS)}")
    numbers = run_conversion_benchmark(arguments.model, arguments.rounds, arguments.scratch)
    return numbers, conversion_table(numbers)
