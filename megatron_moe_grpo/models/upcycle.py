"""Sparse upcycling: every dense feed-forward becomes N experts and a fresh router.  METHOD 5.

Works on a Hugging Face state dict whose text model is Qwen3, and gives one whose text model is Qwen3-MoE, in the
layout that stock transformers loads.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_moe_grpo.conversion import Rule
from megatron_moe_grpo.errors import ConfigError, ConversionError

State = dict[str, Tensor]
DENSE_KEY = re.compile(r"(?P<mlp>language_model\.model\.layers\.\d+\.mlp)\.(?P<part>gate|up|down)_proj\.weight")


@dataclass(frozen=True, kw_only=True)
class UpcycleSettings:
    """How the experts start.  Raises ConfigError for values that contradict each other."""

    num_experts: int = 8
    """N, experts a layer (paper 8)."""
    num_active: int = 2
    """K, experts a token (paper 2)."""
    expert_init: Literal["noise", "copy", "drop"] = "noise"
    """`copy`: N equal experts, which cannot learn to route (METHOD 5); `noise`: each weight plus Gaussian noise;
    `drop`: a share of each expert's inner channels is drawn anew."""
    noise_scale: float = 0.1
    """Standard deviation of the noise, in standard deviations of the dense weight."""
    drop_fraction: float = 0.5
    """Share of inner channels drawn anew, from the mean and standard deviation of the dense weight."""
    renormalise: bool = False
    """Divide the K combination weights by their sum (paper: no)."""
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
        if self.expert_init not in ("noise", "copy", "drop"):
            raise ConfigError("Unknown expert_init.", got=self.expert_init, expected="noise, copy or drop")
        if not 0 <= self.drop_fraction <= 1 or self.noise_scale < 0 or self.router_init_std < 0:
            raise ConfigError(
                "An initial scale is out of range.",
                got=f"noise_scale {self.noise_scale}, drop_fraction {self.drop_fraction}, "
                f"router_init_std {self.router_init_std}",
                expected="scales >= 0, drop_fraction between 0 and 1",
            )

    @property
    def down_scale(self) -> float:
        """Folded into each expert's down projection.

        Un-renormalised weights of nearly uniform routing sum to about K/N; N/K makes the sum of the K outputs the
        dense output again.  Exact only where all router logits are equal.
        """
        return 1.0 if self.renormalise else self.num_experts / self.num_active


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of a model, embeddings and vision tower included."""

    total: int
    active: int
    """Used by one token: all but N - K experts of each layer."""

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


def upcycle_state(
    state: Mapping[str, Tensor], hf_config: Mapping[str, Any], settings: UpcycleSettings
) -> tuple[State, dict[str, Any]]:
    """The dense model as a mixture of experts.  METHOD 5.

    Args:
        state: Hugging Face weights, any floating dtype (kept); tensors that stay the same are shared, not copied.
        hf_config: its `config.json` dict, text model `qwen3`.
    Returns:
        The new weights and the new `config.json` dict.
    Raises:
        ConfigError: the model has experts already or its text model is not Qwen3.
        ConversionError: no dense feed-forward found where the config promises one for each layer.
    """
    moe_config = upcycled_config(hf_config, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    num_layers = hf_config["text_config"]["num_hidden_layers"]
    dense = {match["mlp"]: {} for match in map(DENSE_KEY.fullmatch, state) if match}
    moe_state: State = {}
    for key, weight in state.items():
        match = DENSE_KEY.fullmatch(key)
        if match:
            dense[match["mlp"]][match["part"]] = weight
        else:
            moe_state[key] = weight
    if len(dense) != num_layers or any(len(parts) != 3 for parts in dense.values()):
        raise ConversionError(
            "The dense feed-forwards do not fit the config.",
            got=f"{len(dense)} layers with gate, up or down projections",
            expected=f"{num_layers} layers with all three",
        )
    for mlp, parts in sorted(dense.items(), key=lambda item: _layer_number(item[0])):
        moe_state |= _routed_layer(mlp, parts, settings, generator)
    return moe_state, moe_config


def upcycled_config(hf_config: Mapping[str, Any], settings: UpcycleSettings) -> dict[str, Any]:
    """The `config.json` dict of the upcycled model.

    Raises:
        ConfigError: the text model is not a dense Qwen3.
    """
    config = copy.deepcopy(dict(hf_config))
    text = config.get("text_config", {})
    if text.get("model_type") != "qwen3":
        raise ConfigError(
            "Only a dense Qwen3 text model can be upcycled.",
            got=f"text_config.model_type: {text.get('model_type')}",
            expected="qwen3",
        )
    # Qwen3-only keys, which describe sliding attention that is switched off.
    for key in ("layer_types", "max_window_layers"):
        text.pop(key, None)
    text |= {
        "model_type": "qwen3_moe",
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_active,
        "norm_topk_prob": settings.renormalise,
        "moe_intermediate_size": text["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if "architectures" in text:
        text["architectures"] = ["Qwen3MoeForCausalLM"]
    return config


def _layer_number(mlp: str) -> int:
    return int(mlp.split(".")[-2])


def _routed_layer(
    mlp: str, parts: Mapping[str, Tensor], settings: UpcycleSettings, generator: torch.Generator
) -> State:
    """Router and experts of one layer, drawn from `generator` in a fixed order."""
    gate = parts["gate"]
    router_ND = torch.randn(settings.num_experts, gate.shape[1], generator=generator) * settings.router_init_std
    layer: State = {f"{mlp}.gate.weight": router_ND.to(gate.dtype)}
    for expert in range(settings.num_experts):
        for part, weight in _expert(parts, settings, generator).items():
            layer[f"{mlp}.experts.{expert}.{part}_proj.weight"] = weight
    return layer


def _expert(parts: Mapping[str, Tensor], settings: UpcycleSettings, generator: torch.Generator) -> State:
    """One expert in the dense weights' dtype; drawn in fp32."""
    dtype = parts["gate"].dtype
    expert = {part: parts[part].float() for part in ("gate", "up", "down")}
    if settings.expert_init == "noise":
        expert = {part: weight + settings.noise_scale * _noise(weight, generator) for part, weight in expert.items()}
    elif settings.expert_init == "drop":
        num_channels = expert["gate"].shape[0]
        dropped = torch.randperm(num_channels, generator=generator)[: round(settings.drop_fraction * num_channels)]
        expert = {part: _redraw(weight, dropped, part == "down", generator) for part, weight in expert.items()}
    expert["down"] = expert["down"] * settings.down_scale
    # Clones, because equal experts must not share storage with one another or with the dense weights.
    return {part: weight.to(dtype, copy=True) for part, weight in expert.items()}


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator) * weight.std()


def _redraw(weight: Tensor, channels: Tensor, is_down: bool, generator: torch.Generator) -> Tensor:
    """Draws inner channels anew: rows of gate and up, columns of down."""
    drawn = weight.mean() + _noise(weight, generator)
    redrawn = weight.clone()
    if is_down:
        redrawn[:, channels] = drawn[:, channels]
    else:
        redrawn[channels] = drawn[channels]
    return redrawn
