"""Routing of one example, by hand: probabilities of the answering token, and means over each modality."""

import pytest
import torch

from megatron_moe_grpo.evaluation.analysis.example_routing import example_routing

# Four positions, one layer, three experts; softmax of log p is p.
PROBS = [[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]
LOGITS_SLN = torch.tensor(PROBS).log()[:, None]
EXPERTS_SLK = torch.tensor([[[0]], [[0]], [[1]], [[2]]])
IS_REAL_S = torch.tensor([False, True, True, True])


def test_example_routing_by_hand() -> None:
    found = example_routing(LOGITS_SLN, EXPERTS_SLK, IS_REAL_S, torch.tensor([False, True, True, False]))
    assert found["answer"]["probs_LN"][0] == pytest.approx([0.1, 0.2, 0.7], abs=1e-6)
    assert found["answer"]["experts_LK"] == [[2]]
    assert found["vision"]["probs_LN"][0] == pytest.approx([0.4, 0.4, 0.2], abs=1e-6)
    assert found["vision"]["num_tokens"] == 2
    # The padding in front is no text.
    assert found["text"]["probs_LN"][0] == pytest.approx([0.1, 0.2, 0.7], abs=1e-6)
    assert found["text"]["experts_LK"] == [[2]]


def test_example_routing_marks_the_experts_that_were_used_most_often() -> None:
    experts_SLK = torch.tensor([[[0]], [[1]], [[1]], [[2]]])
    found = example_routing(LOGITS_SLN, experts_SLK, torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))
    assert found["text"]["experts_LK"] == [[1]]


def test_example_routing_without_a_picture_has_no_vision() -> None:
    assert example_routing(LOGITS_SLN, EXPERTS_SLK, IS_REAL_S, torch.zeros(4, dtype=torch.bool))["vision"] is None
