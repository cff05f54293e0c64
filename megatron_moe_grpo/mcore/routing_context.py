"""What every router must know about the micro-batch in flight: how to select, what to record, which losses to add.

One context belongs to one forward pass.  The training step makes it, hands it to the model, and reads back what the
routers recorded; no global list is involved, so two models can route in one process.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import Guidance, Likelihood
from megatron_moe_grpo.losses.surrogate import Surrogate
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.mcore.moe_layers import RouterSizes
from megatron_moe_grpo.routing.selection import gaussian_noise, gumbel_noise, gumbel_top_k, noisy_top_k, top_k
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace, TraceLedger


@dataclass(frozen=True)
class SelectionPolicy:
    """How experts are chosen in training.  MoE-GRPO 3.2-3.3; field meanings as in `RoutingConfig`."""

    guidance: Guidance = "modality"
    likelihood: Likelihood = "plackett_luce"
    noise_std: float = 1.0
    temperature: float = 1.0
    seed: int = 0
    assignment: Literal["policy", "expert_choice", "sinkhorn"] = "policy"
    sinkhorn_iterations: int = 8

    def noise_LBSN(self, stream_B: Tensor, position_BS: Tensor, sizes: RouterSizes) -> Tensor:
        """Selection noise of all layers: a few tensor operations a forward, not a layer."""
        draw = gaussian_noise if self.guidance == "noise" else gumbel_noise
        layer_L = torch.arange(sizes.num_layers, device=position_BS.device)
        return draw(self.seed, stream_B, layer_L, position_BS, sizes.num_experts)


@dataclass(frozen=True)
class GateTerm:
    """Gate-GRPO of one micro-batch: each router adds its own layer's share (MoE-GRPO Eq. 5)."""

    old_logprob_BSL: Tensor | None
    """None: the current likelihood is the old one (first update after a rollout), so every ratio is exactly 1."""
    advantage_B: Tensor
    weight_BS: Tensor
    """`gate_position_weights` divided by the sequences of the global batch."""
    surrogate: Surrogate
    scale: float
    """Coefficient of the loss times what Megatron's averaging divides by (see forward_backward.py)."""


@dataclass(frozen=True)
class BalanceTerm:
    """Switch load balancing of one micro-batch."""

    fraction_LN: Tensor | None
    """Shares of the whole step's selections: a constant, so the term is linear in the tokens and exact under any
    split.  None: count this micro-batch's own selections (supervised training, where no trace is known before)."""
    weight_BS: Tensor
    """Adds up to 1 over the tokens of the global batch."""
    scale: float
    """Coefficient of the loss times what Megatron's averaging divides by."""
    counts_sampled: bool = True
    """The fractions count sampled experts, so P is the masked policy they were drawn from; False: they count the
    deterministic top-K, and P is the router's own softmax.  f and P of different laws reward what f never counts."""


@dataclass(frozen=True)
class RouterZTerm:
    """Router z-loss of one micro-batch."""

    weight_BS: Tensor
    """Adds up to 1 over the tokens of the global batch."""
    scale: float
    """Coefficient of the loss times what Megatron's averaging divides by."""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What one router did: detached, in its own token order.  `routing_records.py` reads it."""

    logits_MN: Tensor
    policy_logits_MN: Tensor
    """Under guidance mask and temperature: what the selection was made from."""
    experts_MK: Tensor
    """[M, 0] under Expert Choice, where the number of a token's experts is not fixed."""


@dataclass
class RoutingContext:
    """One micro-batch as the routers see it, and what they recorded.

    Fields are batch-first over the whole sequence; routers hold slices [s_local, b], position-major: M tokens.  A
    decode step is many tiny kernels, so what does not depend on the router is made for all layers at once.
    """

    mode: RouteMode
    is_real_BS: Tensor
    is_vision_BS: Tensor
    sizes: RouterSizes
    policy: SelectionPolicy = SelectionPolicy()
    is_allowed_L2N: Tensor | None = None
    """Guidance mask; index 1 of the middle axis is vision.  None: every expert is open."""
    explores_BS: Tensor | None = None
    """True where experts are sampled; None: everywhere.  Other positions take the deterministic top-K."""
    stream_B: Tensor | None = None
    """Rollout ids: with seed, layer and position they determine the noise."""
    position_BS: Tensor | None = None
    """Position of each token in its own sequence, padding not counted."""
    noise_LBSN: Tensor | None = None
    """Selection noise, where it was made ahead; None: drawn here when the first router asks."""
    trace: RoutingTrace | None = None
    """The experts to replay, in REPLAY mode."""
    ledger: TraceLedger | None = None
    """Counts each replay of (micro_batch, layer)."""
    micro_batch: int = 0
    gate: GateTerm | None = None
    balance: BalanceTerm | None = None
    router_z: RouterZTerm | None = None
    record_by_layer: dict[int, LayerRecord] = field(default_factory=dict)
    """Of this pipeline stage, in the order of the forward pass: first layer first.  Empty where all its layers are
    dense."""
    gate_by_layer: dict[int, LossTerm] = field(default_factory=dict)
    balance_loss_by_layer: dict[int, Tensor] = field(default_factory=dict)
    router_z_loss_by_layer: dict[int, Tensor] = field(default_factory=dict)
    num_without_expert_by_layer: dict[int, Tensor] = field(default_factory=dict)
    """Under Expert Choice: real tokens that no expert took, whose MoE output is 0."""
    position_slice: slice = field(default_factory=lambda: slice(None))
    """Positions of this rank in what the routers recorded: a part of the sequence under sequence parallelism."""
    _noise_LMN: Tensor | None = None

    @property
    def assignment(self) -> str:
        """Who chooses in this forward: `policy.assignment` where experts are sampled, each token elsewhere."""
        return self.policy.assignment if self.mode is RouteMode.SAMPLE else "policy"

    def to_local(self, tensor_BS: Tensor) -> Tensor:
        """[B, S, ...] of the whole sequence -> this rank's tokens [M, ...] in Megatron's order."""
        return tensor_BS[:, self.position_slice].transpose(0, 1).flatten(0, 1)

    def is_closed_MN(self, layer: int) -> Tensor | None:
        """True for experts that the guidance mask closes to a token of `layer`; None when all are open."""
        return None if self.is_allowed_L2N is None else self._is_closed_LMN[layer]

    def noise_MN(self, layer: int) -> Tensor:
        """The layer's selection noise."""
        if self._noise_LMN is None:
            noise_LBSN = self.noise_LBSN
            if noise_LBSN is None:
                noise_LBSN = self.policy.noise_LBSN(self.stream_B, self.position_BS, self.sizes)
            self._noise_LMN = noise_LBSN[:, :, self.position_slice].transpose(1, 2).flatten(1, 2)
        return self._noise_LMN[layer]

    def replayed_MK(self, layer: int) -> Tensor:
        """The layer's experts in the trace, int64."""
        return self._replayed_LMK[layer]

    @cached_property
    def _is_closed_LMN(self) -> Tensor:
        return ~self.is_allowed_L2N[:, self.to_local(self.is_vision_BS).long()]

    @cached_property
    def _replayed_LMK(self) -> Tensor:
        return self.to_local(self.trace.experts_BSLK).transpose(0, 1).long()

    def select(self, logits_MN: Tensor, noise_MN: Tensor, num_active: int) -> Tensor:
        """Train-time selection on masked logits: ordered experts [M, K]."""
        if self.policy.guidance == "noise":
            return noisy_top_k(logits_MN, noise_MN, self.policy.noise_std, num_active)
        if self.policy.guidance == "none":
            return top_k(logits_MN, num_active)
        return gumbel_top_k(logits_MN, noise_MN, num_active)
