"""Modality-aware router guidance: which experts each modality may explore.  MoE-GRPO 3.3, Eq. 7.

Choices the paper leaves open:

* Counts are running sums with exponential decay over steps.  They live on the CPU in float64, and so do the scores:
  every rank and every device closes the same experts.
* An expert that neither modality chose scores 1/2.  A layer in which one modality was never counted has nothing to
  compare (a text-only run): all its scores are 1/2, and nothing is closed.
* Ties.  Experts of equal score are ordered by how much the *other* modality uses them (of two experts that vision
  never chooses, the one text relies on more is closed first).  Experts equal in both are closed together or not at
  all: an index is no evidence.  So at most floor(P * N) are closed, fewer when a tie straddles that number, and none
  when nothing has been counted.
* No self-reinforcement: a closed expert is sampled less, but the counts are of the deterministic top-K of the
  *unmasked* logits, so closing an expert does not by itself lower its score.  Count with the mask on, and a closed
  expert could never return.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.errors import CheckpointError, ConfigError


class ModalityCounts:
    """How often each expert is in the unmasked top-K of vision and of text tokens.  N_v, N_t of MoE-GRPO Eq. 7."""

    def __init__(self, num_layers: int, num_experts: int, decay: float):
        """Start from nothing counted; `decay` is the kept share of the old counts at each update, 0 <= decay < 1."""
        self.decay = decay
        self.vision_LN = torch.zeros(num_layers, num_experts, dtype=torch.float64)
        self.text_LN = torch.zeros(num_layers, num_experts, dtype=torch.float64)

    def update(self, vision_LN: Tensor, text_LN: Tensor) -> None:
        """counts = decay * counts + new.  Once a step, counts summed over micro-batches and ranks."""
        self.vision_LN = self.decay * self.vision_LN + vision_LN.detach().to("cpu", torch.float64)
        self.text_LN = self.decay * self.text_LN + text_LN.detach().to("cpu", torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of both counts, float64, for a checkpoint."""
        return {"vision_LN": self.vision_LN.clone(), "text_LN": self.text_LN.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved counts.

        Raises:
            CheckpointError: keys or shapes of another model.
        """
        got = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if got != expected:
            raise CheckpointError("Guidance counts do not fit this model", got=got, expected=expected)
        self.vision_LN = state["vision_LN"].to("cpu", torch.float64, copy=True)
        self.text_LN = state["text_LN"].to("cpu", torch.float64, copy=True)


@dataclass(frozen=True, eq=False)
class ModalityAwareness:
    """Scores of MoE-GRPO Eq. 7 and the shares they are made of; float64, [L, N]."""

    vision_score_LN: Tensor
    text_score_LN: Tensor
    vision_share_LN: Tensor
    text_share_LN: Tensor


def modality_awareness(vision_count_LN: Tensor, text_count_LN: Tensor) -> ModalityAwareness:
    """Affinity of each expert for each modality.  MoE-GRPO Eq. 7.

    s_v = N_v / sum N_v, s_t = N_t / sum N_t; score_v = s_v / (s_v + s_t), score_t = s_t / (s_v + s_t).

    Args:
        vision_count_LN: counts >= 0 of vision tokens; no gradient.
        text_count_LN: the same of text tokens.
    Returns:
        ModalityAwareness: scores in [0, 1] that add up to 1, 1/2 where there is nothing to compare; never NaN.
    """
    vision_share_LN = _share(vision_count_LN)
    text_share_LN = _share(text_count_LN)
    total_LN = vision_share_LN + text_share_LN
    has_both_L1 = (vision_share_LN.sum(-1, keepdim=True) > 0) & (text_share_LN.sum(-1, keepdim=True) > 0)
    has_score_LN = has_both_L1 & (total_LN > 0)
    safe_total_LN = total_LN.masked_fill(~has_score_LN, 1.0)
    return ModalityAwareness(
        vision_score_LN=(vision_share_LN / safe_total_LN).masked_fill(~has_score_LN, 0.5),
        text_score_LN=(text_share_LN / safe_total_LN).masked_fill(~has_score_LN, 0.5),
        vision_share_LN=vision_share_LN.masked_fill(~has_both_L1, 0.0),
        text_share_LN=text_share_LN.masked_fill(~has_both_L1, 0.0),
    )


def guidance_mask(counts: ModalityCounts, fraction: float, num_active: int) -> Tensor:
    """Experts open to each modality.  MoE-GRPO 3.3: the P % of experts with the lowest score get -inf.

    Args:
        counts: the running counts.
        fraction: P as a share of N, 0 <= P < 1 (paper 0.25: 2 of 8).
        num_active: K; at least K experts stay open whatever P says.
    Returns:
        is_allowed_L2N: bool, CPU; second index 0 = text, 1 = vision, so that it can be indexed by is_vision.long().
    Raises:
        ConfigError: K > N.
    """
    num_experts = counts.vision_LN.shape[-1]
    if num_active > num_experts:
        raise ConfigError("More active experts than experts", got=num_active, expected=f"K <= {num_experts}")
    # 0.29 * 100 is 28.999...96 in binary: floor only after forgiving the last digits.
    num_closed = min(int(fraction * num_experts + 1e-9), num_experts - num_active)
    scores = modality_awareness(counts.vision_LN, counts.text_LN)
    is_closed_text_LN = _lowest(scores.text_score_LN, scores.vision_share_LN, num_closed)
    is_closed_vision_LN = _lowest(scores.vision_score_LN, scores.text_share_LN, num_closed)
    return ~torch.stack([is_closed_text_LN, is_closed_vision_LN], dim=1)


def _share(count_LN: Tensor) -> Tensor:
    """Counts divided by their sum over experts; 0 where nothing was counted."""
    count_LN = count_LN.to(torch.float64)
    total_L1 = count_LN.sum(-1, keepdim=True)
    return count_LN / total_L1.masked_fill(total_L1 == 0, 1.0)


def _lowest(score_LN: Tensor, other_share_LN: Tensor, num_closed: int) -> Tensor:
    """True for the experts of lowest score, under the tie rule of this file; at most `num_closed` a layer."""
    score_LN1, score_L1N = score_LN[:, :, None], score_LN[:, None, :]
    other_LN1, other_L1N = other_share_LN[:, :, None], other_share_LN[:, None, :]
    is_not_behind_LNN = (score_L1N < score_LN1) | ((score_L1N == score_LN1) & (other_L1N >= other_LN1))
    # Experts closed no later than this one, itself and its ties included: the whole tie has to fit.
    return is_not_behind_LNN.sum(-1) <= num_closed
