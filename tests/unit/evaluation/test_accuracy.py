"""Accuracies and intervals, against worked numbers and scipy."""

import math

import pytest
from scipy import stats

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.accuracy import (
    Accuracy,
    AccuracyReport,
    ExampleRecord,
    mean_with_interval,
    wilson_interval,
)


def records(outcomes: dict[str, list[bool]]) -> list[ExampleRecord]:
    return [
        ExampleRecord(f"{name}-{i}", name, "A", is_correct)
        for name, all_of_type in outcomes.items()
        for i, is_correct in enumerate(all_of_type)
    ]


def test_wilson_interval_worked_number() -> None:
    # p = 1/2, n = 100, z^2 = 3.841459: centre 1/2, half width sqrt(z^2/400 + z^4/40000) / (1 + z^2/100)
    # = sqrt(0.009603647 + 0.000368920) / 1.03841459 = 0.0998628... / 1.03841459 = 0.0961685.
    assert wilson_interval(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-7)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 7), (1460, 2000)])
def test_wilson_interval_agrees_with_scipy(right: int, total: int) -> None:
    expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= wilson_interval(right, total)[0] < wilson_interval(right, total)[1] <= 1.0


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(right: int, total: int) -> None:
    with pytest.raises(DataError):
        wilson_interval(right, total)


def test_accuracy_report_counts_overall_by_type_and_blank() -> None:
    report = AccuracyReport.from_records(
        records({"where": [True, True, False], "count": [False]}), records({"where": [True, False, False, False]})
    )
    assert report.overall == Accuracy(2, 4)
    assert report.by_type == {"count": Accuracy(0, 1), "where": Accuracy(2, 3)}
    assert report.blank == Accuracy(1, 4)
    assert [row[0] for row in report.rows()] == ["all", "count", "where", "blank images"]
    assert report.rows()[0] == ("all", 0.5, *wilson_interval(2, 4), 4)


def test_accuracy_report_without_control_has_no_blank_row() -> None:
    report = AccuracyReport.from_records(records({"where": [True]}))
    assert report.blank is None
    assert [row[0] for row in report.rows()] == ["all", "where"]


def test_accuracy_report_refuses_nothing_and_twins() -> None:
    with pytest.raises(DataError, match="no example"):
        AccuracyReport.from_records([])
    with pytest.raises(DataError, match="twice"):
        AccuracyReport.from_records(records({"where": [True]}) * 2)


def test_mean_with_interval_worked_number() -> None:
    # 1, 2, 3: mean 2, s = 1, t_{0.975, 2} = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    result = mean_with_interval([1.0, 2.0, 3.0])
    assert (result.mean, result.num_values) == (2.0, 3)
    assert (result.low, result.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_mean_with_interval_agrees_with_scipy() -> None:
    values = [0.71, 0.74, 0.69, 0.75, 0.70]
    expected = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    result = mean_with_interval(values)
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-9)


def test_mean_with_interval_of_equal_values_has_no_width() -> None:
    result = mean_with_interval([0.5, 0.5])
    assert result.low == result.mean == result.high == 0.5


def test_mean_with_interval_refuses_a_single_seed() -> None:
    with pytest.raises(DataError, match="two"):
        mean_with_interval([0.7])
    assert not math.isnan(mean_with_interval([0.7, 0.8]).low)
