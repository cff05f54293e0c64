"""`import HF_FOLDER CHECKPOINT` and `export CHECKPOINT HF_FOLDER`."""

import argparse
from pathlib import Path


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `import`."""
    _add_arguments(parser, "Hugging Face folder", "Megatron checkpoint to write; must not exist")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    _add_arguments(parser, "Megatron checkpoint", "Hugging Face folder to write; must not exist")
    parser.add_argument(
        "--layout",
        choices=("same", "native"),
        default="same",
        help="same: that of the folder which was imported; native: the one that stock transformers loads",
    )


def _add_arguments(parser: argparse.ArgumentParser, source: str, out: str) -> None:
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help=out)
    parser.add_argument("--progress", action="store_true", help="show the progress bar where there is no terminal, too")


def run_import(arguments: argparse.Namespace) -> None:
    """Hugging Face folder to Megatron checkpoint."""
    from megatron_moe_grpo.config.schema import ParallelConfig
    from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
    from megatron_moe_grpo.models.convert import import_huggingface

    start_parallel(ParallelConfig(), seed=0)
    import_huggingface(arguments.source, arguments.out, arguments.progress)
    stop_parallel()
    print(f"written: {arguments.out}")


def run_export(arguments: argparse.Namespace) -> None:
    """Megatron checkpoint to Hugging Face folder."""
    from megatron_moe_grpo.models.convert import export_huggingface

    export_huggingface(arguments.source, arguments.out, arguments.layout, arguments.progress)
    print(f"written: {arguments.out}")
