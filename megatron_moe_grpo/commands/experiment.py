"""`experiment TABLE.yaml`: trains a table's cells over seeds and writes what came out beside the paper's own row.

What is done is skipped, so the same command goes on after a stop; each cell runs in a process group of its own.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("table", type=Path, help="YAML file of a table, see examples/tables/")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the table's own")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, one process each (default %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="train these cells only")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tables"), help="starts and runs of all tables (default %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="folder of the page (default %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none")


def run(arguments: argparse.Namespace) -> None:
    """Ends with code 1 if a run failed, 130 if it was stopped."""
    from megatron_moe_grpo.experiments.experiment import Experiment

    experiment = Experiment.open(arguments.table, arguments.seeds, arguments.out)
    if arguments.dry_run:
        print(experiment.commands(arguments.only))
        return
    try:
        failed = experiment.run(arguments.only, arguments.jobs)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    experiment.write_pages(arguments.results, sys.argv[1:])
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)
