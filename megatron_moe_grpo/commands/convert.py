"""`import HF_FOLDER CHECKPOINT` and `export CHECKPOINT HF_FOLDER`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of both verbs."""
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, help="must not exist")


def run_import(arguments: argparse.Namespace) -> None:
    """Hugging Face folder to Megatron checkpoint."""
    from megatron_moe_grpo.models.convert import import_huggingface

    _on_one_process(lambda: import_huggingface(arguments.source, arguments.out))
    print(f"written: {arguments.out}")


def run_export(arguments: argparse.Namespace) -> None:
    """Megatron checkpoint to Hugging Face folder."""
    from megatron_moe_grpo.models.convert import export_huggingface

    _on_one_process(lambda: export_huggingface(arguments.source, arguments.out))
    print(f"written: {arguments.out}")


def _on_one_process(work) -> None:
    from megatron_moe_grpo.config.schema import ParallelConfig
    from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel

    start_parallel(ParallelConfig(), seed=0)
    work()
    stop_parallel()
