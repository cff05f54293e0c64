"""From judged answers to the table and result.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.evaluation.accuracy import wilson_interval
from megatron_moe_grpo.evaluation.answer_folder import AnswerRecord
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Benchmark, Question, Score


@dataclass(frozen=True)
class TableRow:
    """One score, read in both ways, beside its control."""

    name: str
    num_examples: int
    official: float
    strict: float
    official_interval: tuple[float, float] | None
    """95 % Wilson interval; None where the score is no share."""
    blank_official: float | None = None
    """The same model shown blank pictures."""
    blank_strict: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """A complete evaluation."""

    table: list[TableRow]
    num_examples: int
    num_missing_files: int
    """Questions that could not be asked, and count as wrong."""
    num_cut_off: int
    """Answers that reached the longest length."""


def score_table(
    benchmark: Benchmark,
    questions: Sequence[Question],
    answers: Mapping[str, AnswerRecord],
    blank_answers: Mapping[str, AnswerRecord] | None,
) -> list[TableRow]:
    """The benchmark's scores, `overall` first; every question has its answer."""
    official = _scores(benchmark, questions, answers, is_official=True)
    strict = _scores(benchmark, questions, answers, is_official=False)
    blank_official = blank_strict = {}
    if blank_answers is not None:
        blank_official = _scores(benchmark, questions, blank_answers, is_official=True)
        blank_strict = _scores(benchmark, questions, blank_answers, is_official=False)
    return [
        TableRow(
            name=name,
            num_examples=score.num_examples,
            official=score.value,
            strict=strict[name].value,
            official_interval=_interval(score),
            blank_official=blank_official[name].value if blank_official else None,
            blank_strict=blank_strict[name].value if blank_strict else None,
        )
        for name, score in official.items()
    ]


def flat_scores(table: Sequence[TableRow]) -> dict[str, float]:
    """`official.overall`, `strict.overall`, ...: one name a number, for other programs."""
    scores: dict[str, Any] = {}
    for kind in ("official", "strict", "blank_official", "blank_strict"):
        for row in table:
            values = {
                "official": row.official,
                "strict": row.strict,
                "blank_official": row.blank_official,
                "blank_strict": row.blank_strict,
            }
            if values[kind] is not None:
                scores[f"{kind}.{row.name}"] = values[kind]
    return scores


def _scores(
    benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[str, AnswerRecord], is_official: bool
) -> dict[str, Score]:
    is_correct = {
        question.id: answers[question.id].is_correct_official if is_official else answers[question.id].is_correct
        for question in questions
    }
    return {score.name: score for score in benchmark.score(questions, is_correct)}


def _interval(score: Score) -> tuple[float, float] | None:
    return None if score.num_correct is None else wilson_interval(score.num_correct, score.num_examples)
