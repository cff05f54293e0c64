"""The weight of the KL term over training: constant, GRPO-D's, a decay, or steered to a target.  OThink-MR1 Eq. 3.

The paper's text defines b_min twice; the one on the left of "(b_min + b_max) / 2" must be b_mid.  So beta starts at
b_mid, falls to b_min over the exploration steps w, and rises to b_max at step t.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_moe_grpo.errors import ConfigError


class KlSchedule(Protocol):
    """Weights over the steps of a run, known before it starts."""

    def beta_at(self, step: int) -> float:
        """Weight at an optimizer step, counted from 0."""


@dataclass(frozen=True)
class ConstantKl:
    """The same weight at every step."""

    beta: float

    def beta_at(self, step: int) -> float:
        """Weight at an optimizer step."""
        return self.beta


@dataclass(frozen=True)
class DynamicKl:
    """beta(s) of GRPO-D: explore first, then stay close to the reference.  OThink-MR1 Eq. 3.

    Raises:
        ConfigError: not 0 <= beta_min <= beta_max, or not 0 < exploration_steps < total_steps.
    """

    beta_min: float
    """Weight at the end of exploration (paper: 0.04 counting, 0.0 geometry)."""
    beta_max: float
    """Weight at the last step (paper: 0.1 counting, 0.02 geometry)."""
    exploration_steps: float
    """w (paper: 0.3 * total_steps)."""
    total_steps: int
    """t."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max:
            raise ConfigError(
                "KL weights out of order",
                got=f"beta_min {self.beta_min}, beta_max {self.beta_max}",
                expected="0 <= beta_min <= beta_max",
            )
        if not 0 < self.exploration_steps < self.total_steps:
            raise ConfigError(
                "Exploration must end before training does",
                got=f"{self.exploration_steps} of {self.total_steps} steps",
                expected="0 < exploration_steps < total_steps",
            )

    def beta_at(self, step: int) -> float:
        """Weight at an optimizer step; beyond the last step it stays at beta_max."""
        if step <= self.exploration_steps:
            beta_mid = (self.beta_min + self.beta_max) / 2
            return beta_mid - (beta_mid - self.beta_min) * step / self.exploration_steps
        progress = (step - self.exploration_steps) / (self.total_steps - self.exploration_steps)
        return self.beta_min + (self.beta_max - self.beta_min) * min(progress, 1.0)


@dataclass(frozen=True)
class DecayingKl:
    """From one weight to another over the run, straight or along half a cosine.  The ablation beside GRPO-D's curve.

    linear: first + (last - first) s/t;  cosine: last + (first - last) (1 + cos(pi s/t)) / 2.
    """

    first: float
    """Weight at step 0."""
    last: float
    """Weight at step `total_steps` and beyond."""
    total_steps: int
    """t."""
    shape: Literal["linear", "cosine"]

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise ConfigError("Unknown shape of a KL schedule", got=self.shape, expected="linear or cosine")

    def beta_at(self, step: int) -> float:
        """Weight at an optimizer step."""
        progress = min(step / self.total_steps, 1.0)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.first + (self.last - self.first) * progress


@dataclass(frozen=True)
class AdaptiveKl:
    """Steers the measured KL to a target: the proportional controller of Ziegler et al. 2019, Eq. 2.

    beta' = beta (1 + adaptation * clip(kl / target - 1, -1, 1)).  They clip at 0.2 and take 0.1, so that a step changes
    the weight by at most 2 %; here `adaptation` is that largest change itself.
    """

    target_nats: float
    """KL a token that is wanted."""
    adaptation: float
    """Largest relative change in one step."""

    def next_beta(self, beta: float, kl_nats: float) -> float:
        """Weight of the next step, from this step's weight and the KL a token measured in it."""
        error = min(max(kl_nats / self.target_nats - 1, -1.0), 1.0)
        return beta * (1 + self.adaptation * error)
