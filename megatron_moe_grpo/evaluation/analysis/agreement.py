"""How often sampled routing chooses what top-K would have chosen, as a section of analysis.json."""

from typing import Any

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.moe_layers import RouterSizes


def overlap_counts(first_BSLK: Tensor, second_BSLK: Tensor) -> Tensor:
    """How many experts two selections have in common, whatever their order: overlap_BSL, int64, 0 to K."""
    return (first_BSLK.unsqueeze(-1) == second_BSLK.unsqueeze(-2)).sum(dim=(-1, -2))


class AgreementSums:
    """Overlap of sampled selections and of the top-K of the *same* logits, added up batch by batch.

    Both are asked at the same hidden state, which the sampled experts of earlier layers led to: the number is about
    single selections, not about how far whole routes drift apart.
    """

    def __init__(self, sizes: RouterSizes):
        self._sizes = sizes
        self._overlap_L2 = torch.zeros(sizes.num_layers, 2, dtype=torch.float64)
        self._same_L2 = torch.zeros(sizes.num_layers, 2, dtype=torch.float64)
        self._tokens_2 = torch.zeros(2, dtype=torch.float64)

    def add(self, sampled_BSLK: Tensor, top_k_BSLK: Tensor, is_counted_BS: Tensor, is_vision_BS: Tensor) -> None:
        """Takes the counted tokens in; `is_vision_BS` sorts them into text (0) and vision (1)."""
        overlap_BSL = overlap_counts(sampled_BSLK.long(), top_k_BSLK.long())
        for modality, is_of_it_BS in enumerate((~is_vision_BS, is_vision_BS)):
            chosen_ML = overlap_BSL[is_counted_BS & is_of_it_BS].cpu()
            self._overlap_L2[:, modality] += chosen_ML.sum(dim=0)
            self._same_L2[:, modality] += (chosen_ML == self._sizes.num_active).sum(dim=0)
            self._tokens_2[modality] += len(chosen_ML)

    def section(self) -> dict[str, Any]:
        """The means over tokens.

        Returns:
            overlap: |sampled and top-K| / K, mean over tokens, routes and layers; `by_layer`, `text_by_layer` and
                `vision_by_layer` apart (None where a modality has no token).
            same_set: share of selections in which all K experts agree.
            chance: K / N, the overlap of K experts drawn blindly.
            num_tokens: tokens counted, over all routes.
        """
        num_active, tokens = self._sizes.num_active, self._tokens_2.sum()
        by_modality = [
            (self._overlap_L2[:, index] / num_active / count).tolist() if count > 0 else None
            for index, count in enumerate(self._tokens_2.tolist())
        ]
        overlap_L = self._overlap_L2.sum(dim=1) / num_active / tokens
        return {
            "overlap": float(overlap_L.mean()),
            "by_layer": overlap_L.tolist(),
            "text_by_layer": by_modality[0],
            "vision_by_layer": by_modality[1],
            "same_set": float((self._same_L2.sum(dim=1) / tokens).mean()),
            "chance": num_active / self._sizes.num_experts,
            "num_tokens": int(tokens),
        }
