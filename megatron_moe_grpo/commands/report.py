"""`report RUN_FOLDER`: writes report.html from what the run has logged so far."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run_folder", type=Path)


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints where it is."""
    from megatron_moe_grpo.evaluation.report import write_report

    print(f"written: {write_report(arguments.run_folder)}")
