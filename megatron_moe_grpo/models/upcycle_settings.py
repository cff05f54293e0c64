"""How a dense model becomes a mixture of experts: every choice, checked.  METHOD 5."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_moe_grpo.errors import ConfigError

ExpertInit = Literal["noise", "copy", "drop"]
RouterInit = Literal["virtual_groups", "random"]


@dataclass(frozen=True, kw_only=True)
class UpcycleSettings:
    """How the experts start.  Raises ConfigError for values that contradict each other."""

    num_experts: int = 8
    """N, experts a layer (paper 8)."""
    num_active: int = 2
    """K, experts a token (paper 2)."""
    layers: str = "all"
    """Which layers get experts, from 0: `all` (paper), `every:2` (1, 3, 5, ...), or a list such as `0-3,8`."""
    granularity: int = 1
    """m: each expert is one of m slices of the feed-forward, 1/m of its inner width; every slice has N/m experts
    (paper 1).  Nakamura et al. 2024, He et al. 2024."""
    expert_init: ExpertInit = "noise"
    """`copy`: equal experts of each slice, which cannot learn to route (METHOD 5); `noise`: each weight plus Gaussian
    noise; `drop`: a share of each expert's inner channels is drawn anew."""
    noise_scale: float = 0.1
    """Standard deviation of the noise, in standard deviations of the dense weight (of the slice)."""
    drop_fraction: float = 0.5
    """Share of inner channels drawn anew, from the mean and standard deviation of the dense weight (of the slice)."""
    renormalise: bool = False
    """Divide the K combination weights by their sum (paper: no)."""
    router_init: RouterInit = "virtual_groups"
    """`virtual_groups`: the m slices of one copy share one router row, so that the top-K are whole copies (He et al.
    2024); K must be a multiple of m.  `random`: every expert has a row of its own.  No difference for m = 1."""
    router_init_std: float = 0.002
    """Standard deviation of the new router weights.  Small, because without renormalisation the top-K weights sum to
    more than K/N: at width 1024 the experts' output is 1.07 times the dense one with 0.002, 1.8 times with 0.02."""
    seed: int = 0
    """Seeds routers and experts."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_active <= self.num_experts:
            raise ConfigError(
                "Active experts must be between one and all.",
                got=f"K = {self.num_active}, N = {self.num_experts}",
                expected="1 <= K <= N",
            )
        _check_choice("expert_init", self.expert_init, get_args(ExpertInit))
        _check_choice("router_init", self.router_init, get_args(RouterInit))
        _check_granularity(self)
        _parse_layers(self.layers)
        if not 0 <= self.drop_fraction <= 1 or self.noise_scale < 0 or self.router_init_std < 0:
            raise ConfigError(
                "An initial scale is out of range.",
                got=f"noise_scale {self.noise_scale}, drop_fraction {self.drop_fraction}, "
                f"router_init_std {self.router_init_std}",
                expected="scales >= 0, drop_fraction between 0 and 1",
            )

    @property
    def down_scale(self) -> float:
        """Folded into each expert's down projection: N m / K, or m with renormalised weights.

        The dense output is the sum over its m slices, y = sum_s f_s(x), and the experts' is sum over the K chosen of
        weight x f_slice.  Nearly uniform routing gives weights of 1/N (renormalised: 1/K).
        *Exact* where the K chosen are K/m whole copies and all router logits are equal: each slice is chosen K/m times,
        so the sum is (K/m) (1/N) y.  Virtual groups choose so; renormalised, they are exact at any router logits (and
        with m = 1 any choice is).
        *In expectation only* where experts are chosen one by one, as in sampling or with `router_init: random`: each is
        among the chosen with probability K/N, and N/m experts hold each slice, so the mean over choices is
        (K/N) (1/N) (N/m) y: the same.  With K < m a token sees K of the m slices at most, scaled up: its own output is
        never the dense one.
        """
        return float(self.granularity) * (1.0 if self.renormalise else self.num_experts / self.num_active)

    def chosen_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers, from 0 and ascending, that get experts in a model of `num_layers`.

        Raises:
            ConfigError: a layer that does not exist, or none at all.
        """
        every, listed = _parse_layers(self.layers)
        chosen = set(range(every - 1, num_layers, every)) if every else listed
        if not chosen or max(chosen) >= num_layers:
            raise ConfigError(
                "The layers to upcycle do not fit the model.",
                got=f"layers: {self.layers}, a model of {num_layers}",
                expected=f"at least one layer, each from 0 to {num_layers - 1}",
            )
        return tuple(sorted(chosen))


def _parse_layers(text: str) -> tuple[int, set[int]]:
    """(n of every n-th layer or 0, listed layers)."""
    if text == "all":
        return 1, set()
    if re.fullmatch(r"every:[1-9]\d*", text):
        return int(text.removeprefix("every:")), set()
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        bounds = [(int(part.split("-")[0]), int(part.split("-")[-1])) for part in text.split(",")]
        if all(first <= last for first, last in bounds):
            return 0, {layer for first, last in bounds for layer in range(first, last + 1)}
    raise ConfigError(
        "The layers to upcycle cannot be read.", got=f"layers: {text}", expected="all, every:2, or a list such as 0-3,8"
    )


def _check_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise ConfigError(f"Unknown {name}.", got=got, expected=", ".join(choices))


def _check_granularity(settings: UpcycleSettings) -> None:
    granularity = settings.granularity
    if granularity < 1 or settings.num_experts % granularity:
        raise ConfigError(
            "Every slice of the feed-forward needs as many experts as every other.",
            got=f"granularity {granularity}, N = {settings.num_experts}",
            expected="N a multiple of the granularity",
        )
    if settings.router_init == "virtual_groups" and settings.num_active % granularity:
        raise ConfigError(
            "Virtual groups choose whole copies of the feed-forward.",
            got=f"granularity {granularity}, K = {settings.num_active}",
            expected="K a multiple of the granularity",
            remedy="choose another K, or router_init: random, which starts like the dense model only on average",
        )
