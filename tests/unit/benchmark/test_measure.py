import time

import pytest

from megatron_moe_grpo.benchmark.measure import (
    PhaseClock,
    Span,
    Spread,
    paired_ratio,
    peak_memory_bytes,
    replaced,
    time_steps,
)


class Counter:
    """Something with a class attribute to replace."""

    def one(self) -> int:
        return 1


def test_spread_is_the_median_between_the_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_paired_ratio_divides_neighbours_not_medians() -> None:
    above = [Span(2.0, 9.0), Span(20.0, 9.0), Span(6.0, 9.0)]
    below = [Span(1.0, 1.0), Span(10.0, 1.0), Span(2.0, 1.0)]
    assert paired_ratio(above, below).median == 2.0


def test_phase_clock_counts_an_inner_phase_once() -> None:
    clock = PhaseClock()
    started = time.perf_counter()
    with clock.phase("outer"):
        clock.timed(time.sleep, "inner")(0.05)
        with clock.phase("outer"):
            time.sleep(0.01)
    whole_s = time.perf_counter() - started
    outer_s, inner_s = clock.spans["outer"].wall_s, clock.spans["inner"].wall_s
    assert inner_s >= 0.05
    assert 0.01 <= outer_s <= whole_s - inner_s
    # Only the clock's own few lines are missing from the sum.
    assert outer_s + inner_s == pytest.approx(whole_s, abs=5e-3)


def test_phase_clock_names_a_phase_by_the_arguments() -> None:
    clock = PhaseClock()
    assert clock.timed(abs, lambda value: "below" if value < 0 else "above")(-3) == 3
    assert list(clock.spans) == ["below"]


def test_replaced_puts_back_what_was_there() -> None:
    counter, original = Counter(), Counter.one
    with replaced(Counter, "one", lambda self: 2):
        assert counter.one() == 2
    assert Counter.one is original
    with pytest.raises(ZeroDivisionError), replaced(counter, "one", lambda: 3):
        assert counter.one() == 3
        _ = 1 / 0
    assert counter.one() == 1 and "one" not in vars(counter)


def test_time_steps_alternates_the_order_and_pairs_by_round() -> None:
    calls: list[str] = []
    spans = time_steps([lambda: calls.append("a"), lambda: calls.append("b")], num_rounds=3)
    assert "".join(calls) == "abbaab"
    assert [len(column) for column in spans] == [3, 3]


def test_peak_memory_is_in_bytes() -> None:
    assert 2**24 < peak_memory_bytes() < 2**38
