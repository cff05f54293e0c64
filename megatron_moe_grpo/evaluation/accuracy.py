"""Accuracies with their uncertainty: by problem type, beside a blank-image control, and over seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from megatron_moe_grpo.errors import DataError

# Two-sided 95 % point of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class ExampleRecord:
    """One answered example."""

    id: str
    problem_type: str
    response: str
    is_correct: bool


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and its 95 % Wilson interval."""

    num_correct: int
    num_examples: int

    @property
    def value(self) -> float:
        return self.num_correct / self.num_examples

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.num_correct, self.num_examples)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] (n = {self.num_examples})"


@dataclass(frozen=True)
class AccuracyReport:
    """Accuracy overall and by problem type; `blank` is the same model shown blank images, None if not measured."""

    overall: Accuracy
    by_type: dict[str, Accuracy]
    blank: Accuracy | None = None

    @classmethod
    def from_records(
        cls, records: Sequence[ExampleRecord], blank_records: Sequence[ExampleRecord] | None = None
    ) -> "AccuracyReport":
        """Counts the records.  Raises DataError for an empty list or an example that appears twice."""
        types = sorted({record.problem_type for record in records})
        return cls(
            overall=_count(records),
            by_type={name: _count([r for r in records if r.problem_type == name]) for name in types},
            blank=None if blank_records is None else _count(blank_records),
        )

    def rows(self) -> list[tuple[str, float, float, float, int]]:
        """(name, accuracy, low, high, n) for a table: overall, each type, then the control."""
        named = [("all", self.overall), *self.by_type.items()]
        if self.blank is not None:
            named.append(("blank images", self.blank))
        return [(name, a.value, *a.interval, a.num_examples) for name, a in named]


@dataclass(frozen=True)
class MeanInterval:
    """A mean over independent runs and its 95 % t interval."""

    mean: float
    low: float
    high: float
    num_values: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.num_values} seeds)"


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); stays inside [0, 1] and is not empty at 0 or 1.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = num_correct / n and z = 1.96.
    """
    if num_examples <= 0 or not 0 <= num_correct <= num_examples:
        raise DataError(
            "a share needs 0 <= right answers <= examples, and one example at least",
            got=f"{num_correct} of {num_examples}",
        )
    share, z2_over_n = num_correct / num_examples, Z_95**2 / num_examples
    centre = share + z2_over_n / 2
    half_width = Z_95 * math.sqrt(share * (1 - share) / num_examples + z2_over_n / (4 * num_examples))
    low, high = (centre - half_width) / (1 + z2_over_n), (centre + half_width) / (1 + z2_over_n)
    return max(0.0, low), min(1.0, high)


def mean_with_interval(values: Sequence[float]) -> MeanInterval:
    """Mean over seeds with the 95 % t interval: mean +- t_{0.975, n-1} s / sqrt(n), s the n-1 standard deviation."""
    num_values = len(values)
    if num_values < 2:
        raise DataError(
            "an interval over seeds takes at least two of them",
            got=list(values),
            remedy="run more seeds, or report the single value with its Wilson interval",
        )
    mean = math.fsum(values) / num_values
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num_values - 1))
    half_width = float(stdtrit(num_values - 1, 0.975)) * std / math.sqrt(num_values)
    return MeanInterval(mean, mean - half_width, mean + half_width, num_values)


def _count(records: Iterable[ExampleRecord]) -> Accuracy:
    seen: set[str] = set()
    num_correct = 0
    for record in records:
        if record.id in seen:
            raise DataError("an example was evaluated twice", got=record.id, expected="one record an id")
        seen.add(record.id)
        num_correct += record.is_correct
    if not seen:
        raise DataError("no example was evaluated", remedy="check that the evaluation file has rows")
    return Accuracy(num_correct, len(seen))
