"""Which experts belong to vision and which to text, layer by layer, as a section of analysis.json.  MoE-GRPO Eq. 7."""

from typing import Any

from torch import Tensor

from megatron_moe_grpo.routing.guidance import ModalityCounts, guidance_mask, modality_awareness


def modality_counts(vision_LN: Tensor, text_LN: Tensor) -> ModalityCounts:
    """Counts that are whole already: nothing decays."""
    counts = ModalityCounts(*vision_LN.shape, decay=0.0)
    counts.update(vision_LN, text_LN)
    return counts


def modality_section(counts: ModalityCounts, fraction: float, num_active: int) -> dict[str, Any]:
    """Modality-awareness scores and the guidance mask that follows from them.  MoE-GRPO Eq. 7.

    Args:
        counts: deterministic top-K choices of vision and of text tokens.
        fraction: P, the share of experts closed to each modality.
        num_active: K, so many experts stay open.
    Returns:
        vision_score_LN: s_v / (s_v + s_t) with the shares s of each modality's choices; the text score is 1 less this.
            1/2: used alike, or a layer in which one modality was never counted.
        is_open_to_vision_LN, is_open_to_text_LN: the mask; false for experts that guidance closes.
        num_vision_selections, num_text_selections: counts in the first layer; 0 says why all scores are 1/2.
    """
    mask_L2N = guidance_mask(counts, fraction, num_active)
    return {
        "fraction": fraction,
        "vision_score_LN": modality_awareness(counts.vision_LN, counts.text_LN).vision_score_LN.tolist(),
        "is_open_to_vision_LN": mask_L2N[:, 1].tolist(),
        "is_open_to_text_LN": mask_L2N[:, 0].tolist(),
        "num_vision_selections": float(counts.vision_LN[0].sum()),
        "num_text_selections": float(counts.text_LN[0].sum()),
    }
