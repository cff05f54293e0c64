"""What counts as harmful, worked by hand, and that a verdict does not depend on when the run was resumed."""

import json
import math
import random

import pytest
import torch

from megatron_moe_grpo.config.schema import StabilityConfig
from megatron_moe_grpo.training.update_guard import UpdateGuard

WINDOW = 4
SETTINGS = StabilityConfig(spike_window_steps=WINDOW, max_skipped_updates=3)
# Losses: mean 0, standard deviation 1; norms: mean 2, standard deviation 1.
NUMBERS = [(-1.0, 1.0), (1.0, 3.0), (-1.0, 1.0), (1.0, 3.0)]
BAD = (math.nan, math.inf, -math.inf)


def guard_after(numbers: list[tuple[float, float]], is_loss_signed: bool = True, **settings: float) -> UpdateGuard:
    guard = UpdateGuard(SETTINGS.model_copy(update=settings), is_loss_signed=is_loss_signed)
    assert all(guard.allows(loss, norm) for loss, norm in numbers)
    return guard


@pytest.mark.parametrize("value", BAD)
def test_allows_nothing_that_is_not_finite(value: float) -> None:
    guard = guard_after([], spike_sigmas=0)
    assert not guard.allows(value, 1.0) and guard.last_reason == f"the loss is {value}"
    assert not guard.allows(0.0, value) and guard.last_reason == f"the gradient norm is {value}"
    assert guard.num_skipped == 2 and guard.allows(0.0, 1.0)


@pytest.mark.parametrize(("norm", "is_allowed"), [(7.99, True), (8.01, False), (0.0, True), (1e38, False)])
def test_a_gradient_norm_6_standard_deviations_above_is_a_spike(norm: float, is_allowed: bool) -> None:
    assert guard_after(NUMBERS).allows(0.0, norm) is is_allowed


@pytest.mark.parametrize(
    ("loss", "is_signed", "is_allowed"),
    [(5.99, False, True), (6.01, False, False), (-100.0, False, True), (-6.01, True, False), (-5.99, True, True)],
)
def test_a_loss_6_standard_deviations_away_is_a_spike(loss: float, is_signed: bool, is_allowed: bool) -> None:
    assert guard_after(NUMBERS, is_signed).allows(loss, 2.0) is is_allowed


def test_spikes_are_configurable() -> None:
    assert guard_after(NUMBERS, spike_sigmas=0).allows(1e9, 1e9)
    assert guard_after(NUMBERS, spike_sigmas=100).allows(0.0, 101.9)
    guard = guard_after(NUMBERS, spike_sigmas=100)
    assert not guard.allows(0.0, 102.1)
    assert guard.last_reason == (
        "a gradient norm of 102.1 is a spike: the last 4 have mean 2, and 100 standard deviations are 100"
    )


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert guard_after(NUMBERS[1:]).allows(1e9, 1e9)


def test_the_window_holds_the_last_updates_that_were_taken() -> None:
    guard = guard_after(NUMBERS)
    for _ in range(100):
        assert not guard.allows(0.0, 8.01)
    # The first of NUMBERS gives way: norms 3, 1, 3, 3 have mean 2.5 and standard deviation sqrt(3) / 2.
    assert guard.allows(0.0, 3.0)
    limit = 2.5 + 6 * math.sqrt(3) / 2
    assert not guard.allows(0.0, limit + 1e-9) and guard.allows(0.0, limit - 1e-9)


def test_updates_without_signal_are_judged_and_not_remembered() -> None:
    # Most steps of a sparse reward: only balancing has a gradient.  The one with signal must not be a spike.
    guard = guard_after([])
    for _ in range(10):
        assert guard.allows(0.01, 1e-4, has_signal=False)
    assert guard.allows(0.01, 1.0)
    guard = guard_after(NUMBERS)
    assert not guard.allows(0.0, 100.0, has_signal=False) and not guard.allows(math.nan, 1.0, has_signal=False)


def test_rounding_is_no_spike() -> None:
    # A GRPO loss at ratio 1 is rounding error, and here its standard deviation is 0.
    guard = guard_after([(0.0, 1.0)] * WINDOW)
    assert guard.allows(-1e-8, 1.0)
    assert guard.allows(0.05, 1.59), "6 x 0.01 and 6 x 0.1 above the means are no spike"
    assert not guard_after([(0.0, 1.0)] * WINDOW).allows(0.061, 1.0)
    assert not guard_after([(0.0, 1.0)] * WINDOW).allows(0.0, 1.61)


def test_is_exhausted_after_so_many_in_a_row() -> None:
    guard = guard_after([])
    for norm in (math.nan, math.nan, 1.0, math.nan, math.nan):
        guard.allows(0.0, norm)
        assert not guard.is_exhausted
    guard.allows(0.0, math.nan)
    assert guard.is_exhausted and guard.num_skipped == 5


def test_take_message_tells_of_a_skipped_update_once() -> None:
    guard = guard_after([])
    assert guard.take_message(1) is None
    guard.allows(math.nan, 1.0)
    # The second update of the step is taken: the first is told nevertheless.
    guard.allows(0.0, 1.0)
    assert guard.take_message(2) == "step 2: update skipped (1 so far, 0 in a row): the loss is nan"
    assert guard.take_message(3) is None


def test_a_restored_guard_judges_as_if_it_had_never_ended() -> None:
    generator = random.Random(0)
    numbers = [(generator.gauss(0, 1), math.exp(generator.gauss(0, 3))) for _ in range(400)]
    numbers[50:52] = [(math.nan, 1.0), (0.0, math.inf)]
    whole = UpdateGuard(SETTINGS, is_loss_signed=True)
    resumed = UpdateGuard(SETTINGS, is_loss_signed=True)
    verdicts = []
    for loss, norm in numbers:
        restored = UpdateGuard(SETTINGS, is_loss_signed=True)
        restored.restore(json.loads(json.dumps(resumed.state(), allow_nan=False)))
        resumed = restored
        verdicts.append(whole.allows(loss, norm))
        assert resumed.allows(loss, norm) is verdicts[-1]
        assert (resumed.state(), resumed.is_exhausted) == (whole.state(), whole.is_exhausted)
    assert 10 < verdicts.count(False) < 390


def test_restore_of_a_checkpoint_without_a_guard_starts_anew() -> None:
    guard = guard_after(NUMBERS)
    guard.restore({})
    assert guard.state() == {"window": [], "num_in_a_row": 0, "num_skipped": 0}


def test_spikes_are_those_of_torchs_standard_deviation() -> None:
    generator = random.Random(1)
    numbers = [(generator.gauss(0.3, 2), generator.expovariate(1)) for _ in range(128)]
    settings = StabilityConfig()
    losses, norms = torch.tensor(numbers, dtype=torch.float64).T
    for column, values in ((0, losses), (1, norms)):
        limit = float(values.mean() + 6 * values.std(correction=0))
        for factor, is_allowed in ((1 - 1e-9, True), (1 + 1e-9, False)):
            guard = UpdateGuard(settings)
            guard.restore({"window": numbers, "num_in_a_row": 0, "num_skipped": 0})
            case = (limit * factor, 0.0) if column == 0 else (0.0, limit * factor)
            assert guard.allows(*case) is is_allowed
