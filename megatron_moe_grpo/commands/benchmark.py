"""`benchmark`: a training step by phase, the price of the routing trace, and TRL beside it if installed."""

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--steps", type=int, default=6, help="steps a block")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of each program")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the numbers here too")


def run(arguments: argparse.Namespace) -> None:
    """Measures about a minute; prints one table."""
    # Read once, when the libraries load.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
    import torch

    from megatron_moe_grpo.benchmark.run import run_benchmark
    from megatron_moe_grpo.benchmark.table import benchmark_table

    torch.set_num_threads(arguments.threads)
    numbers = run_benchmark(arguments.blocks, arguments.steps)
    print(benchmark_table(numbers))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
