"""Agreement of two selections: by hand, by modality, and where a modality is missing."""

import pytest
import torch

from megatron_moe_grpo.evaluation.analysis.agreement import AgreementSums, overlap_counts
from megatron_moe_grpo.mcore.moe_layers import RouterSizes

SIZES = RouterSizes(num_layers=2, num_experts=8, num_active=2)
# One sequence of three positions, two layers, two experts.
SAMPLED_BSLK = torch.tensor([[[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[0, 1], [0, 1]]]], dtype=torch.int16)
TOP_K_BSLK = torch.tensor([[[[1, 0], [3, 4]], [[0, 1], [7, 0]], [[0, 1], [0, 1]]]])
IS_VISION_BS = torch.tensor([[True, False, False]])


def test_overlap_counts_ignores_the_order() -> None:
    assert overlap_counts(SAMPLED_BSLK.long(), TOP_K_BSLK).tolist() == [[[2, 1], [0, 1], [2, 2]]]


def test_agreement_by_hand() -> None:
    sums = AgreementSums(SIZES)
    # The third position is padding.
    sums.add(SAMPLED_BSLK, TOP_K_BSLK, torch.tensor([[True, True, False]]), IS_VISION_BS)
    found = sums.section()
    # Layer 0: (2 + 0) of 4, layer 1: (1 + 1) of 4.
    assert found["by_layer"] == [0.5, 0.5]
    assert found["vision_by_layer"] == [1.0, 0.5]
    assert found["text_by_layer"] == [0.0, 0.5]
    assert (found["overlap"], found["chance"], found["num_tokens"]) == (0.5, 0.25, 2)
    # One of the four selections agrees in both experts.
    assert found["same_set"] == 0.25


def test_agreement_adds_batches_up_by_their_tokens() -> None:
    sums = AgreementSums(SIZES)
    for position in range(3):
        part = slice(position, position + 1)
        is_counted_BS = torch.ones(1, 1, dtype=torch.bool)
        sums.add(SAMPLED_BSLK[:, part], TOP_K_BSLK[:, part], is_counted_BS, IS_VISION_BS[:, part])
    whole = AgreementSums(SIZES)
    whole.add(SAMPLED_BSLK, TOP_K_BSLK, torch.ones(1, 3, dtype=torch.bool), IS_VISION_BS)
    assert sums.section() == whole.section()
    assert whole.section()["by_layer"] == pytest.approx([4 / 6, 4 / 6])


def test_agreement_without_pictures_has_no_vision() -> None:
    sums = AgreementSums(SIZES)
    sums.add(SAMPLED_BSLK, TOP_K_BSLK, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool))
    assert sums.section()["vision_by_layer"] is None
    assert sums.section()["text_by_layer"] == sums.section()["by_layer"]
