"""Updates that would harm the weights are skipped: NaN, infinity, and spikes of loss or gradient norm.

A verdict is a function of numbers that are equal on every rank (all of them are reduced over all ranks), and of those
that came before, so the ranks agree without asking one another.

A spike is measured on the last `stability.spike_window_steps` updates; before there are so many, nothing is one.
Two kinds of update are left out of them:
  - skipped ones: a spike must not make the next one look normal;
  - those whose groups all lack signal: their gradient is only that of KL and balancing.  Where most steps are so, one
    that has something to teach would count as a spike, and never be learned from.
A gradient norm is judged upwards only.  A supervised loss too: it may fall at once, as where the rows begin anew.
A policy's loss lies near 0 with either sign, neither of which is the good one, so both sides are judged.
"""

import math
from collections import deque
from typing import Any

from megatron_moe_grpo.config.schema import StabilityConfig
from megatron_moe_grpo.mcore.optimizer import TrainableModel

# A standard deviation counts as no smaller than this: among numbers that hardly vary, 6 of them are no spike.  At ratio
# 1 a GRPO loss is rounding error, 1e-9.  Loss: in nats, or in advantages, whose scale is 1; norm: of its mean.
MIN_LOSS_STD = 0.01
MIN_NORM_STD_OVER_MEAN = 0.1


class UpdateGuard:
    """Judges each update before the optimizer takes its step; the same verdict on every rank."""

    def __init__(self, settings: StabilityConfig, *, is_loss_signed: bool = False):
        """
        Args:
            is_loss_signed: the loss lies around 0, so that far below is as strange as far above.
        """
        self._settings = settings
        self._is_loss_signed = is_loss_signed
        self._window: deque[tuple[float, float]] = deque(maxlen=settings.spike_window_steps)
        self._num_in_a_row = 0
        self.num_skipped = 0
        """Updates skipped since the run began."""
        self.last_reason = ""
        """Why the last update that was skipped was skipped."""
        self._has_news = False

    @property
    def is_exhausted(self) -> bool:
        """True once so many updates in a row were skipped that the run should end."""
        return self._num_in_a_row >= self._settings.max_skipped_updates

    def allows(self, loss: float, gradient_norm: float, *, has_signal: bool = True) -> bool:
        """True if the optimizer may take its step; both numbers are those of all ranks.

        Args:
            gradient_norm: before clipping.
            has_signal: False if no group of the step has one, on any rank.
        """
        problem = self._problem_with(loss, gradient_norm)
        if problem is None:
            self._num_in_a_row = 0
            if has_signal:
                self._window.append((loss, gradient_norm))
            return True
        self._num_in_a_row += 1
        self.num_skipped += 1
        self.last_reason = problem
        self._has_news = True
        return False

    def take_message(self, done: int) -> str | None:
        """What to print after `done` steps; None if nothing was skipped since the last call."""
        if not self._has_news:
            return None
        self._has_news = False
        counted = f"{self.num_skipped} so far, {self._num_in_a_row} in a row"
        return f"step {done}: update skipped ({counted}): {self.last_reason}"

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {
            "window": [list(numbers) for numbers in self._window],
            "num_in_a_row": self._num_in_a_row,
            "num_skipped": self.num_skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over `state()`; {}, of a checkpoint without one, starts anew."""
        self._window.clear()
        self._window.extend((loss, gradient_norm) for loss, gradient_norm in state.get("window", []))
        self._num_in_a_row = state.get("num_in_a_row", 0)
        self.num_skipped = state.get("num_skipped", 0)

    def _problem_with(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if self._settings.spike_sigmas == 0 or len(self._window) < self._settings.spike_window_steps:
            return None
        losses, norms = zip(*self._window, strict=True)
        mean, std = _mean_and_std(norms)
        room = self._settings.spike_sigmas * max(std, MIN_NORM_STD_OVER_MEAN * mean)
        if gradient_norm > mean + room:
            return self._spike("gradient norm", gradient_norm, mean, room)
        mean, std = _mean_and_std(losses)
        room = self._settings.spike_sigmas * max(std, MIN_LOSS_STD)
        if loss > mean + room or (self._is_loss_signed and loss < mean - room):
            return self._spike("loss", loss, mean, room)
        return None

    def _spike(self, name: str, value: float, mean: float, room: float) -> str:
        return (
            f"a {name} of {value:.4g} is a spike: the last {len(self._window)} have mean {mean:.4g}, "
            f"and {self._settings.spike_sigmas:g} standard deviations are {room:.4g}"
        )


def guarded_step(
    trainable: TrainableModel, guard: UpdateGuard, loss: float, *, has_signal: bool = True
) -> dict[str, float]:
    """The optimizer's step on the gradient that is there, or none if `guard` forbids it; returns metrics."""
    loss, gradient_norm = trainable.measure(loss)
    if guard.allows(loss, gradient_norm, has_signal=has_signal):
        trainable.step(gradient_norm)
    else:
        trainable.skip_step()
    return {
        "grad_norm": gradient_norm,
        "learning_rate": trainable.learning_rate,
        "updates_skipped": guard.num_skipped,
    }


def _mean_and_std(values: tuple[float, ...]) -> tuple[float, float]:
    """Exact sums: the order of the values, which a resumed run might change, does not matter."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
