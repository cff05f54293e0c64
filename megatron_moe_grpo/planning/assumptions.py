"""The numbers that a plan cannot know; each can be set, and all are printed with the estimate that rests on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from megatron_moe_grpo.errors import ConfigError


@dataclass(frozen=True)
class Assumptions:
    """Guesses of experience, not measurements; override with `--assume NAME=VALUE`."""

    matmul_efficiency: float = 0.35
    """Share of the peak FLOP/s that matrix products of the update and the prefill reach."""
    memory_efficiency: float = 0.6
    """Share of the peak memory bandwidth that decoding reaches."""
    link_efficiency: float = 0.7
    """Share of the peak bandwidth that collectives reach, inside a node and between nodes."""
    collective_latency_s: float = 30e-6
    """Time of a collective without bytes between two ranks; times log2 of the ranks."""
    layer_launch_s: float = 600e-6
    """Least time of one decoder layer's forward: kernel launches and the experts' host synchronisation (no graphs)."""
    expert_imbalance: float = 1.3
    """Tokens of the busiest expert-parallel rank over the mean, for memory and time."""
    reserved_bytes: float = 4e9
    """CUDA context, NCCL buffers and library workspaces."""
    fragmentation: float = 0.05
    """Share of the allocated memory that the allocator cannot use."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ConfigError("An assumption must be a number from 0 up.", got=f"{name}={value}")
        for name in ("matmul_efficiency", "memory_efficiency", "link_efficiency"):
            if not 0 < asdict(self)[name] <= 1:
                raise ConfigError("An efficiency is a share of the peak.", got=f"{name}={asdict(self)[name]}")
        if self.expert_imbalance < 1 or self.fragmentation >= 1:
            raise ConfigError(
                "The busiest rank has at least the mean, and fragmentation is a share.",
                got=f"expert_imbalance={self.expert_imbalance}, fragmentation={self.fragmentation}",
            )


def read_assumptions(overrides: Sequence[str]) -> Assumptions:
    """The defaults with `NAME=VALUE` overrides.  Raises ConfigError: an unknown name or something that is no number."""
    known = [field.name for field in fields(Assumptions)]
    values: dict[str, float] = {}
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in known:
            raise ConfigError("Unknown assumption.", got=override, expected=f"NAME=VALUE, NAME of {', '.join(known)}")
        try:
            values[name] = float(text)
        except ValueError as error:
            raise ConfigError("An assumption must be a number.", got=override) from error
    return replace(Assumptions(), **values)
