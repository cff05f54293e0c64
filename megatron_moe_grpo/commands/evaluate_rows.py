"""Accuracy on rows: answers with pictures and, as the control, with blank ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.evaluation.accuracy import AccuracyReport
from megatron_moe_grpo.rewards.answer_format import Extraction
from megatron_moe_grpo.training.console import summary_table


def evaluate_rows(folder: Path, data: Path, out: Path | None, extraction: Extraction, **settings: Any) -> None:
    """Prints accuracies with 95 % intervals; writes the answers to `out`.

    Args:
        folder: a Hugging Face folder, or a Megatron checkpoint.
        settings: further arguments of `evaluate_hf_folder`.
    """
    if out is not None:
        # Before the answers, so that a mistyped path costs none of them.
        out.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "assets").is_dir():
        from megatron_moe_grpo.evaluation.checkpoint_evaluation import evaluate_checkpoint as answer
    else:
        from megatron_moe_grpo.evaluation.hf_evaluation import evaluate_hf_folder as answer
    settings |= {"reward": RewardConfig(extraction=extraction)}
    records = answer(folder, data, **settings)
    blank = answer(folder, data, **settings, blank_images=True)
    report = AccuracyReport.from_records(records, blank)
    print(summary_table(report.rows(), ("questions", "accuracy", "95 % low", "95 % high", "n")))
    if out is not None:
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
        out.write_text("".join(lines), encoding="utf-8")
