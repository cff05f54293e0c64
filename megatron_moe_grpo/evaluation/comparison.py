"""Several evaluated models on the same examples of one benchmark, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import EvaluationError
from megatron_moe_grpo.evaluation.accuracy import Accuracy
from megatron_moe_grpo.evaluation.answer_folder import ANSWERS, AnswerRecord, read_answers, read_settings
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named
from megatron_moe_grpo.evaluation.paired_tests import PairedComparison, compare_paired
from megatron_moe_grpo.rewards.answer_format import Extraction

# Settings that name a model or its folder; all others must be equal.
MODEL_SETTINGS = ("model", "model_kind", "model_digest", "model_url")


@dataclass(frozen=True)
class ComparedModel:
    """One folder's line of the table."""

    folder: Path
    accuracy: Accuracy
    against_first: PairedComparison | None
    """None for the first folder."""


def compare_folders(folders: Sequence[Path], extraction: Extraction) -> list[ComparedModel]:
    """Every folder against the first.

    An example is a question; where the benchmark counts groups (MMBench), a group, right if all of it is.

    Raises:
        EvaluationError: fewer than two folders, one that is not complete, other examples or other settings.
    """
    if len(folders) < 2:
        raise EvaluationError("a comparison takes two folders at least", got=len(folders))
    settings = [read_settings(folder) for folder in folders]
    answers = [_complete_answers(folder, of_folder) for folder, of_folder in zip(folders, settings, strict=True)]
    for folder, of_folder in zip(folders, settings, strict=True):
        _refuse_other_settings(folders[0], settings[0], folder, of_folder)
    for folder, of_folder in zip(folders, answers, strict=True):
        _refuse_other_examples(folders[0], answers[0], folder, of_folder)
    counts_groups = benchmark_named(settings[0]["benchmark"]).counts_groups
    outcomes = [_outcomes(of_folder, extraction, counts_groups) for of_folder in answers]
    clusters = _clusters(answers[0], counts_groups)
    return [
        ComparedModel(
            folder,
            Accuracy(sum(of_folder), len(of_folder)),
            compare_paired(outcomes[0], of_folder, clusters) if number else None,
        )
        for number, (folder, of_folder) in enumerate(zip(folders, outcomes, strict=True))
    ]


def _complete_answers(folder: Path, settings: Mapping[str, Any]) -> dict[str, AnswerRecord]:
    answers = read_answers(folder / ANSWERS)
    if len(answers) != settings["num_questions"]:
        raise EvaluationError(
            f"the evaluation in {folder} is not complete",
            got=f"{len(answers)} of {settings['num_questions']} answers",
            remedy="give its command again: it goes on",
        )
    return answers


def _refuse_other_settings(first: Path, expected: Mapping[str, Any], folder: Path, got: Mapping[str, Any]) -> None:
    keys = [key for key in sorted({*expected, *got}) if expected.get(key) != got.get(key)]
    # Other questions are named one by one below.
    keys = [key for key in keys if key not in (*MODEL_SETTINGS, "questions_digest", "num_questions")]
    if keys:
        raise EvaluationError(
            f"{folder} was evaluated otherwise than {first}",
            got="; ".join(f"{key} {got.get(key)!r}" for key in keys),
            expected="; ".join(f"{key} {expected.get(key)!r}" for key in keys),
        )


def _refuse_other_examples(
    first: Path, expected: Mapping[str, AnswerRecord], folder: Path, got: Mapping[str, AnswerRecord]
) -> None:
    others = [
        question_id
        for question_id in sorted({*expected, *got})
        if question_id not in expected
        or question_id not in got
        or expected[question_id].question_digest != got[question_id].question_digest
    ]
    if others:
        raise EvaluationError(
            f"{folder} and {first} were asked different examples",
            got=f"{len(others)} that differ, the first: {others[0]}",
            remedy="evaluate both on the same files",
        )


def _outcomes(answers: Mapping[str, AnswerRecord], extraction: Extraction, counts_groups: bool) -> list[bool]:
    """One outcome an example, in the order of ids, so that all folders agree on it."""
    records = [answers[question_id] for question_id in sorted(answers)]
    marks = [record.is_correct_official if extraction == "official" else record.is_correct for record in records]
    if not counts_groups:
        return marks
    groups: dict[str, bool] = {}
    for record, mark in zip(records, marks, strict=True):
        groups[record.group] = groups.get(record.group, True) and mark
    return list(groups.values())


def _clusters(answers: Mapping[str, AnswerRecord], counts_groups: bool) -> list[str]:
    """What each example shares with others; a group that is one example shares nothing."""
    records = [answers[question_id] for question_id in sorted(answers)]
    clusters = [record.group or f"alone {record.id}" for record in records]
    return list(dict.fromkeys(clusters)) if counts_groups else clusters
