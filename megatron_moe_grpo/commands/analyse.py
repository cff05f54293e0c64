"""`analyse RUN_OR_CHECKPOINT --out FOLDER`: how a model routes; `analyse A B --out FOLDER`: analyses side by side."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "sources", type=Path, nargs="+", help="a run folder (its newest checkpoint), a checkpoint, or several analyses"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for analysis.json, analysis.html and figures/")
    parser.add_argument("--data", type=Path, help="rows to analyse (default: the run's held-out rows)")
    parser.add_argument("--image-root", type=Path, help="folder of the image paths (default: that of the rows)")
    parser.add_argument("--rows", type=_count, help="analyse only the first so many rows")
    parser.add_argument("--examples", type=int, default=12, help="rows shown with pictures and routing (default: 12)")
    parser.add_argument("--routes", type=_count, default=8, help="G, sampled routes of each row (default: 8)")
    parser.add_argument("--max-new-tokens", type=_count, help="longest answer (default: the run's, or 2)")
    parser.add_argument("--prompt-template", help="as data.prompt_template (default: the run's, or plain)")
    parser.add_argument("--batch-size", type=_count, default=256, help="sequences answered together (default: 256)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder and prints where its page is."""
    if len(arguments.sources) > 1:
        _compare(arguments)
        return
    # The CPU platform must be in place before anything imports megatron.core.
    import megatron_moe_grpo.mcore  # noqa: F401
    from megatron_moe_grpo.evaluation.analysis.analyse import analyse
    from megatron_moe_grpo.evaluation.analysis.folder import prepare_folder, write_analysis
    from megatron_moe_grpo.evaluation.analysis.preparation import AnalysisOptions
    from megatron_moe_grpo.evaluation.analysis.source import find_source

    source = find_source(arguments.sources[0])
    options = AnalysisOptions(
        data=arguments.data,
        num_examples=arguments.examples,
        num_routes=arguments.routes,
        num_rows=arguments.rows,
        image_root=arguments.image_root,
        prompt_template=arguments.prompt_template,
        max_new_tokens=arguments.max_new_tokens,
        sequences_per_forward=arguments.batch_size,
    )
    prepare_folder(arguments.out)
    print(f"written: {write_analysis(analyse(source, options), arguments.out)}")


def _compare(arguments: argparse.Namespace) -> None:
    """Analyses that are there already: nothing is loaded."""
    from megatron_moe_grpo.evaluation.analysis.side_by_side import compare_analyses, write_side_by_side

    print(compare_analyses(arguments.sources))
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"\nwritten: {write_side_by_side(arguments.sources, arguments.out / 'side_by_side.html')}")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count
