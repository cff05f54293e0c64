"""Scores of a benchmark: the model is opened as what it is, and asked."""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm

from megatron_moe_grpo.data.prompt_templates import prompt_template
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.evaluation.asking import Answerer, AskSettings
from megatron_moe_grpo.evaluation.benchmark_result import TableRow
from megatron_moe_grpo.evaluation.benchmark_run import BenchmarkRun, run_benchmark
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named
from megatron_moe_grpo.evaluation.chat_endpoint import ChatEndpoint, EndpointSettings
from megatron_moe_grpo.evaluation.endpoint_answerer import EndpointAnswerer
from megatron_moe_grpo.training.console import summary_table

HEADER = ("score", "official", "strict", "n")
BLANK_HEADER = ("blank official", "blank strict")


def evaluate_benchmark(arguments: argparse.Namespace, batch_size: int) -> None:
    """Prints the table and writes the folder."""
    benchmark = benchmark_named(arguments.benchmark)
    settings = AskSettings(
        max_new_tokens=arguments.max_new_tokens or benchmark.max_new_tokens,
        video_frames=arguments.video_frames,
        template=prompt_template(arguments.prompt_template),
    )
    with tqdm(unit="question", dynamic_ncols=True, disable=None) as bar:
        result = run_benchmark(
            BenchmarkRun(
                benchmark,
                arguments.data,
                arguments.out,
                settings,
                image_root=arguments.image_root,
                with_blank_images=bool(arguments.blank_images),
                missing_files=arguments.missing_files or "error",
                on_progress=lambda num_done, num_questions: _show(bar, num_done, num_questions),
            ),
            _answerer(arguments, settings, batch_size),
        )
    print(_table(result.table))
    for count, what in (
        (result.num_missing_files, "questions without their video count as wrong"),
        (result.num_cut_off, f"answers reached {settings.max_new_tokens} tokens without an end (--max-new-tokens)"),
    ):
        if count:
            print(f"{count} of {result.num_examples} {what}")


def _answerer(
    arguments: argparse.Namespace, settings: AskSettings, batch_size: int
) -> AbstractContextManager[Answerer]:
    if "://" in arguments.model:
        return _endpoint(arguments, settings)
    folder = Path(arguments.model)
    if (folder / "assets").is_dir():
        from megatron_moe_grpo.evaluation.checkpoint_answerer import checkpoint_answerer

        return checkpoint_answerer(folder, settings, batch_size)
    return _huggingface(folder, settings, batch_size)


@contextmanager
def _huggingface(folder: Path, settings: AskSettings, batch_size: int) -> Iterator[Answerer]:
    from megatron_moe_grpo.evaluation.hf_answerer import hf_answerer

    with nullcontext(hf_answerer(folder, settings, batch_size)) as answerer:
        yield answerer


@contextmanager
def _endpoint(arguments: argparse.Namespace, settings: AskSettings) -> Iterator[Answerer]:
    given = {name: vars(arguments)[name] for name in ("model_name", "concurrency", "timeout_s", "retries")}
    endpoint_settings = EndpointSettings(
        arguments.model,
        api_key=_api_key(arguments.api_key_file),
        **{name: value for name, value in given.items() if value is not None},
    )
    with ChatEndpoint(endpoint_settings) as endpoint:
        yield EndpointAnswerer(endpoint, settings, endpoint_settings.concurrency)


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the key cannot be read", got=f"{file}: {type(error).__name__}") from error
    if not key or not key.isprintable():
        raise ConfigError("the file holds no key", got=file, expected="one line")
    return key


def _show(bar: tqdm, num_done: int, num_questions: int) -> None:
    bar.total, bar.n = num_questions, num_done
    bar.refresh()


def _table(rows: list[TableRow]) -> str:
    has_blank = rows[0].blank_official is not None
    lines = [
        (row.name, row.official, row.strict, row.num_examples)
        + ((row.blank_official, row.blank_strict) if has_blank else ())
        for row in rows
    ]
    return summary_table(lines, HEADER + (BLANK_HEADER if has_blank else ()))
