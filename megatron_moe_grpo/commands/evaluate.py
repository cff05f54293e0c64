"""`evaluate MODEL --data FILE`: accuracy on rows, or with `--benchmark NAME` the scores of a benchmark.

MODEL is a Megatron checkpoint (our engine), a Hugging Face folder (plain transformers), or, for benchmarks, the address
of an OpenAI-compatible endpoint.
"""

import argparse
from pathlib import Path

from megatron_moe_grpo.errors import ConfigError

ROWS_TOKENS, ROWS_BATCH, BENCHMARK_BATCH = 2, 256, 16
ENDPOINT_PREFIXES = ("http://", "https://")
BENCHMARK_ONLY = ("blank_images", "missing_files", "model_name", "api_key_file", "concurrency", "timeout_s", "retries")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; those of one kind of evaluation have no default, so that the other can refuse them."""
    parser.add_argument("model", help="exported Hugging Face folder, Megatron checkpoint, or http://HOST:PORT")
    parser.add_argument(
        "--data", type=Path, required=True, help="rows in any format that training reads, or a benchmark"
    )
    parser.add_argument("--image-root", type=Path, help="folder of the image paths (default: that of the data)")
    parser.add_argument("--out", type=Path, help="of rows: the JSONL file of answers; of a benchmark: its folder")
    parser.add_argument("--max-new-tokens", type=_count, help="longest answer (default: 2, or the benchmark's)")
    parser.add_argument("--batch-size", type=_count, help="asked together (default: 256 rows, 16 of a benchmark)")
    parser.add_argument("--video-frames", type=_count, default=8, help="as data.video_frames of the run")
    parser.add_argument("--prompt-template", default="plain", help="as data.prompt_template of the run")
    parser.add_argument("--extraction", choices=("strict", "official"), help="how rows' answers are read")
    benchmark = parser.add_argument_group("benchmarks (docs/evaluation.md)")
    benchmark.add_argument("--benchmark", metavar="NAME", help="mme, mmbench, ... (a wrong name prints the list)")
    benchmark.add_argument("--blank-images", action="store_true", default=None, help="ask again with blank pictures")
    benchmark.add_argument("--missing-files", choices=("error", "wrong"), help="questions without their video")
    endpoint = parser.add_argument_group("endpoints")
    endpoint.add_argument("--model-name", help="at the endpoint (default: the only one there)")
    endpoint.add_argument("--api-key-file", type=Path, help="file that holds the endpoint's key")
    endpoint.add_argument("--concurrency", type=_count, help="requests at a time (default: 8)")
    endpoint.add_argument("--timeout-s", type=_seconds, help="of one request (default: 600)")
    endpoint.add_argument("--retries", type=_count_or_none, help="further tries of a request (default: 4)")


def run(arguments: argparse.Namespace) -> None:
    """Prints a table; writes `--out`."""
    if arguments.benchmark is None:
        _refuse_given(arguments, BENCHMARK_ONLY, "only benchmarks take", "add --benchmark NAME")
        if arguments.model.startswith(ENDPOINT_PREFIXES):
            raise ConfigError(
                "an endpoint is asked benchmarks only", got=arguments.model, remedy="add --benchmark NAME"
            )
        from megatron_moe_grpo.commands.evaluate_rows import evaluate_rows

        evaluate_rows(
            Path(arguments.model),
            arguments.data,
            arguments.out,
            arguments.extraction or "strict",
            max_new_tokens=arguments.max_new_tokens or ROWS_TOKENS,
            batch_size=arguments.batch_size or ROWS_BATCH,
            image_root=arguments.image_root,
            video_frames=arguments.video_frames,
            prompts=arguments.prompt_template,
        )
        return
    _refuse_given(arguments, ("extraction",), "benchmarks read answers in both ways, without", "leave it out")
    if arguments.out is None:
        raise ConfigError("a benchmark needs a folder for its answers", remedy="add --out FOLDER")
    from megatron_moe_grpo.commands.evaluate_benchmark import evaluate_benchmark

    evaluate_benchmark(arguments, arguments.batch_size or BENCHMARK_BATCH)


def _refuse_given(arguments: argparse.Namespace, names: tuple[str, ...], what: str, remedy: str) -> None:
    given = [name for name in names if vars(arguments)[name] is not None]
    if given:
        raise ConfigError(f"{what} --{given[0].replace('_', '-')}", remedy=remedy)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return seconds
