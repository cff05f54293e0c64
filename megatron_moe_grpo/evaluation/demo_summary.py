"""The table at the end of the demo: every accuracy beside its controls, read back from what the steps wrote."""

import json
from pathlib import Path
from typing import Any

from megatron_moe_grpo.evaluation.accuracy import AccuracyReport, ExampleRecord, wilson_interval

COLUMNS = ("model", "pictures", "accuracy", "95 % low", "95 % high", "blank images")


def summary_rows(out: Path) -> list[tuple[object, ...]]:
    """(model, pictures, accuracy, low, high, blank-image accuracy) of each stage of the demo in `out`."""
    clear, washed = "clear", "washed out"
    return [
        ("dense, after supervised training", clear, *_last(out / "dense_sft")),
        ("dense, the same model", washed, *_answers(out / "answers_dense.jsonl"), None),
        ("upcycled to 8 experts, before MoE-GRPO", washed, *_first(out / "moe_grpo")),
        ("upcycled, after MoE-GRPO (reward only)", washed, *_last(out / "moe_grpo")),
        ("upcycled, supervised instead", washed, *_last(out / "supervised")),
    ]


def agreement(out: Path) -> tuple[int, int]:
    """(equal answers, answers) of our engine and of plain transformers on the exported model."""
    ours, theirs = (_read(out / f"answers_{name}.jsonl") for name in ("ours", "transformers"))
    responses = {line["id"]: line["response"] for line in theirs}
    return sum(line["response"] == responses[line["id"]] for line in ours), len(ours)


def _last(run: Path) -> tuple[float | None, ...]:
    return _evaluation(run, -1)


def _first(run: Path) -> tuple[float | None, ...]:
    return _evaluation(run, 0)


def _evaluation(run: Path, index: int) -> tuple[float | None, ...]:
    line = [line for line in _read(run / "metrics.jsonl") if "eval_accuracy" in line][index]
    num_examples = line["eval_num_examples"]
    interval = wilson_interval(round(line["eval_accuracy"] * num_examples), num_examples)
    return line["eval_accuracy"], *interval, line.get("eval_blank_accuracy")


def _answers(path: Path) -> tuple[float, float, float]:
    report = AccuracyReport.from_records([ExampleRecord(**line) for line in _read(path)])
    return report.overall.value, *report.overall.interval


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
