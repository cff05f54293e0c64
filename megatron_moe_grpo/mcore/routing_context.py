"""What every router must know about the micro-batch in flight: how to select, what to record, which losses to add.

One context belongs to one forward pass.  The training step makes it, hands it to the model, and reads back what the
routers recorded; no global list is involved, so two models can route in one process.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import Guidance, Likelihood
from megatron_moe_grpo.routing.selection import gaussian_noise, gumbel_noise, gumbel_top_k, noisy_top_k, top_k
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace, TraceLedger


@dataclass(frozen=True)
class SelectionPolicy:
    """How experts are chosen in training.  MoE-GRPO 3.2-3.3; field meanings as in `RoutingConfig`."""

    guidance: Guidance = "modality"
    likelihood: Likelihood = "plackett_luce"
    noise_std: float = 1.0
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class GateTerm:
    """Gate-GRPO of one micro-batch: each router adds its own layer's share (MoE-GRPO Eq. 5)."""

    old_logprob_BSL: Tensor | None
    """None: the current likelihood is the old one (first update after a rollout), so every ratio is exactly 1."""
    advantage_B: Tensor
    weight_BS: Tensor
    """`gate_position_weights` divided by the sequences of the global batch."""
    epsilon: float
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


@dataclass
class RoutingContext:
    """One micro-batch as the routers see it, and what they recorded.

    Shapes are batch-first over the whole sequence; routers hold [s_local, b] slices and convert.
    """

    mode: RouteMode
    is_real_BS: Tensor
    is_vision_BS: Tensor
    num_layers: int
    policy: SelectionPolicy = SelectionPolicy()
    is_allowed_L2N: Tensor | None = None
    """Guidance mask; index 1 of the middle axis is vision.  None: every expert is open."""
    explores_BS: Tensor | None = None
    """True where experts are sampled; None: everywhere.  Other positions take the deterministic top-K."""
    stream_B: Tensor | None = None
    """Rollout ids: with seed, layer and position they determine the noise."""
    position_BS: Tensor | None = None
    """Position of each token in its own sequence, padding not counted."""
    trace: RoutingTrace | None = None
    """The experts to replay, in REPLAY mode."""
    ledger: TraceLedger | None = None
    """Counts each replay of (micro_batch, layer)."""
    micro_batch: int = 0
    gate: GateTerm | None = None
    balance: BalanceTerm | None = None
    counts_top_k: bool = False
    """Count the deterministic top-K by modality (for guidance)."""

    experts_by_layer: dict[int, Tensor] = field(default_factory=dict)
    logprob_by_layer: dict[int, Tensor] = field(default_factory=dict)
    entropy_by_layer: dict[int, Tensor] = field(default_factory=dict)
    top_k_counts_by_layer: dict[int, Tensor] = field(default_factory=dict)
    gate_by_layer: dict[int, LossTerm] = field(default_factory=dict)
    balance_loss_by_layer: dict[int, Tensor] = field(default_factory=dict)
    position_slice: slice = field(default_factory=lambda: slice(None))
    """Positions of this rank in what the routers recorded: a part of the sequence under sequence parallelism."""
    _noise_LBSN: Tensor | None = None

    def is_allowed_BSN(self, layer: int) -> Tensor | None:
        """Experts open to each token of `layer` under the guidance mask, or None when all are."""
        if self.is_allowed_L2N is None:
            return None
        return self.is_allowed_L2N[layer][self.is_vision_BS.long()]

    def noise_BSN(self, layer: int, num_experts: int) -> Tensor:
        """The layer's selection noise.  Made for all layers at once: a few tensor operations a forward, not a layer."""
        if self._noise_LBSN is None:
            draw = gaussian_noise if self.policy.guidance == "noise" else gumbel_noise
            layers = torch.arange(self.num_layers, device=self.position_BS.device)
            self._noise_LBSN = draw(self.policy.seed, self.stream_B, layers, self.position_BS, num_experts)
        return self._noise_LBSN[layer]

    def select(self, logits_MN: Tensor, noise_MN: Tensor, num_active: int) -> Tensor:
        """Train-time selection on masked logits: ordered experts [M, K]."""
        if self.policy.guidance == "noise":
            return noisy_top_k(logits_MN, noise_MN, self.policy.noise_std, num_active)
        if self.policy.guidance == "none":
            return top_k(logits_MN, num_active)
        return gumbel_top_k(logits_MN, noise_MN, num_active)
