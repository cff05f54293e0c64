"""The KL weight of a run: which schedule, its weight now, and what a checkpoint keeps of it.  OThink-MR1 Eq. 3."""

from megatron_moe_grpo.config.schema import KlConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.kl_schedule import AdaptiveKl, ConstantKl, DecayingKl, DynamicKl, KlSchedule


class KlControl:
    """beta(s): by a schedule that is known in advance, or steered by the KL that training measures."""

    def __init__(self, settings: KlConfig, total_steps: int):
        """Raises ConfigError for settings that make no schedule."""
        self._controller: AdaptiveKl | None = None
        self._schedule: KlSchedule | None = None
        self._beta = settings.beta
        if settings.schedule == "adaptive":
            self._controller = AdaptiveKl(settings.target_nats, settings.adaptation)
        else:
            self._schedule = kl_schedule(settings, total_steps)

    def beta_at(self, step: int) -> float:
        """Weight of a step, counted from 0."""
        return self._beta if self._schedule is None else self._schedule.beta_at(step)

    def observe(self, kl_nats: float) -> None:
        """Takes the mean KL a token of the step just done; only `adaptive` listens."""
        if self._controller is not None:
            self._beta = self._controller.next_beta(self._beta, kl_nats)

    def state(self) -> float:
        """What a checkpoint keeps: the weight that `adaptive` has come to."""
        return self._beta

    def restore(self, beta: float) -> None:
        """Goes on where `state` was taken."""
        self._beta = beta


def kl_schedule(settings: KlConfig, total_steps: int) -> KlSchedule:
    """The schedule that the settings name, over `total_steps` rollout steps.

    Raises:
        ConfigError: `adaptive` and `none` have no curve that is known in advance.
    """
    match settings.schedule:
        case "constant":
            return ConstantKl(settings.beta)
        case "dynamic":
            exploration_steps = settings.exploration_fraction * total_steps
            return DynamicKl(settings.beta_min, settings.beta_max, exploration_steps, total_steps)
        case "linear" | "cosine":
            return DecayingKl(settings.beta_max, settings.beta_min, total_steps, settings.schedule)
        case _:
            raise ConfigError(
                "this KL schedule has no curve that is known in advance",
                got=f"kl.schedule={settings.schedule}",
                expected="constant, dynamic, linear or cosine",
            )
