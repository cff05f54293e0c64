"""The weight of the KL term over training: constant, or GRPO-D's.  OThink-MR1 Eq. 3, METHOD 6.

The paper's text defines b_min twice; the one on the left of "(b_min + b_max) / 2" must be b_mid.  So beta starts at
b_mid, falls to b_min over the exploration steps w, and rises to b_max at step t.
"""

from dataclasses import dataclass

from megatron_moe_grpo.errors import ConfigError


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


KlSchedule = ConstantKl | DynamicKl
