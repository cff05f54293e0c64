"""How many weights a model has, and how many of them one token uses, from its weight map alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_moe_grpo.conversion import Rule


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of a model, embeddings and vision tower included."""

    total: int
    active: int
    """Used by one token: all but N - K experts of each layer that has some."""

    def __str__(self) -> str:
        billions = f"{self.total / 1e9:.2f} B / {self.active / 1e9:.2f} B"
        return f"{self.total:,} parameters, {self.active:,} active ({billions})"


def parameter_counts(rules: Sequence[Rule], num_active: int | None) -> ParameterCounts:
    """Counts from a weight map's shapes; allocates nothing.

    Args:
        num_active: K; None for a dense model.
    """
    total = sum(rule.num_parameters for rule in rules)
    expert_rules = [rule for rule in rules if "expert" in rule.repeat]
    idle = sum(rule.num_parameters * (1 - (num_active or 0) / rule.repeat["expert"]) for rule in expert_rules)
    return ParameterCounts(total, total - round(idle))
