"""`compare FOLDER FOLDER ...`: models on the same examples, each against the first; evaluated ones or analysed ones."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folders", type=Path, nargs="+", help="folders of `evaluate --benchmark`, or of `analyse`")


def run(arguments: argparse.Namespace) -> None:
    """Prints one table for each way of reading answers; of analyses, one for each of their sections."""
    if all((folder / "analysis.json").is_file() for folder in arguments.folders):
        from megatron_moe_grpo.evaluation.analysis.side_by_side import compare_analyses

        print(compare_analyses(arguments.folders))
        return
    from megatron_moe_grpo.evaluation.comparison import ComparedModel, compare_folders
    from megatron_moe_grpo.training.console import summary_table

    def cells(model: ComparedModel) -> tuple[object, ...]:
        low, high = model.accuracy.interval
        own = (str(model.folder), model.accuracy.value, f"{low:.3f} to {high:.3f}", model.accuracy.num_examples)
        paired = model.against_first
        if paired is None:
            return (*own, None, None, None, None, None)
        interval = f"{paired.low:+.3f} to {paired.high:+.3f}"
        return (
            *own,
            f"{paired.difference:+.3f}",
            interval,
            paired.num_only_first,
            paired.num_only_second,
            f"{paired.p_value:.3g}",
        )

    for extraction in ("official", "strict"):
        rows = [cells(model) for model in compare_folders(arguments.folders, extraction)]
        columns = (extraction, "accuracy", "95 %", "n", "minus first", "95 %", "only first", "only this", "McNemar p")
        print(f"{summary_table(rows, columns)}\n")
