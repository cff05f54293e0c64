"""Modality-awareness scores and masks of a section, by hand."""

import pytest
import torch

from megatron_moe_grpo.evaluation.analysis.modality import modality_counts, modality_section


def test_modality_section_by_hand() -> None:
    # Shares of vision 0.6, 0.3, 0.1, 0; of text 0.1, 0.3, 0.2, 0.4.
    counts = modality_counts(torch.tensor([[6.0, 3.0, 1.0, 0.0]]), torch.tensor([[2.0, 6.0, 4.0, 8.0]]))
    found = modality_section(counts, fraction=0.25, num_active=2)
    assert found["vision_score_LN"][0] == pytest.approx([6 / 7, 1 / 2, 1 / 3, 0.0])
    # One of four experts is closed to each: to vision the one that only reads, to text the one that mostly sees.
    assert found["is_open_to_vision_LN"] == [[True, True, True, False]]
    assert found["is_open_to_text_LN"] == [[False, True, True, True]]
    assert (found["num_vision_selections"], found["num_text_selections"]) == (10.0, 20.0)


def test_modality_section_without_pictures_closes_nothing() -> None:
    counts = modality_counts(torch.zeros(2, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))
    found = modality_section(counts, fraction=0.25, num_active=2)
    assert found["vision_score_LN"] == [[0.5] * 4] * 2
    assert found["is_open_to_vision_LN"] == found["is_open_to_text_LN"] == [[True] * 4] * 2
    assert found["num_vision_selections"] == 0.0
