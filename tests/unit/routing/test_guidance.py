import pytest
import torch

from megatron_moe_grpo.errors import CheckpointError, ConfigError
from megatron_moe_grpo.routing.guidance import ModalityCounts, guidance_mask, modality_awareness


def counted(vision: list[float], text: list[float]) -> ModalityCounts:
    """One layer with these counts."""
    counts = ModalityCounts(num_layers=1, num_experts=len(vision), decay=0.5)
    counts.update(torch.tensor([vision]), torch.tensor([text]))
    return counts


def closed(counts: ModalityCounts, fraction: float, num_active: int = 2) -> tuple[list[int], list[int]]:
    """Closed experts of layer 0: (to text, to vision)."""
    is_allowed_2N = guidance_mask(counts, fraction, num_active)[0]
    return tuple((~is_allowed_N).nonzero().flatten().tolist() for is_allowed_N in is_allowed_2N)


def test_modality_awareness_by_hand():
    # s_v = .4 .4 .2 0, s_t = .1 .2 .2 .5.
    scores = modality_awareness(torch.tensor([[4.0, 4, 2, 0]]), torch.tensor([[2.0, 4, 4, 10]]))
    expected = torch.tensor([[0.8, 2 / 3, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(scores.vision_score_LN, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(scores.text_score_LN, 1 - expected, atol=1e-7, rtol=0)


def test_modality_awareness_of_experts_never_chosen_is_one_half():
    scores = modality_awareness(torch.tensor([[3.0, 0, 0]]), torch.tensor([[0.0, 0, 5]]))
    assert scores.vision_score_LN.tolist() == [[1.0, 0.5, 0.0]]
    assert scores.text_score_LN.tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("vision, text", [([0, 0, 0], [0, 0, 0]), ([0, 0, 0], [5, 1, 0]), ([5, 1, 0], [0, 0, 0])])
def test_modality_awareness_without_one_modality_is_one_half_everywhere(vision, text):
    scores = modality_awareness(torch.tensor([vision]), torch.tensor([text]))
    assert scores.vision_score_LN.tolist() == scores.text_score_LN.tolist() == [[0.5, 0.5, 0.5]]


def test_modality_awareness_does_not_depend_on_how_many_tokens_a_modality_has():
    vision_LN, text_LN = torch.tensor([[4.0, 4, 2, 0]]), torch.tensor([[2.0, 4, 4, 10]])
    few = modality_awareness(vision_LN, text_LN).vision_score_LN
    many = modality_awareness(1024 * vision_LN, text_LN).vision_score_LN
    torch.testing.assert_close(few, many)


def test_guidance_mask_closes_the_lowest_quarter_of_each_modality():
    counts = counted(vision=[8, 7, 6, 5, 4, 3, 2, 1], text=[1, 2, 3, 4, 5, 6, 7, 8])
    assert closed(counts, 0.25) == ([0, 1], [6, 7])


def test_guidance_mask_is_indexed_by_is_vision():
    counts = counted(vision=[8, 7, 6, 5, 4, 3, 2, 1], text=[1, 2, 3, 4, 5, 6, 7, 8])
    is_vision_M = torch.tensor([True, False])
    is_allowed_MN = guidance_mask(counts, 0.25, 2)[0][is_vision_M.long()]
    assert is_allowed_MN.dtype == torch.bool
    assert is_allowed_MN[0].tolist() == [True] * 6 + [False] * 2
    assert is_allowed_MN[1].tolist() == [False] * 2 + [True] * 6


def test_guidance_mask_treats_layers_separately():
    counts = ModalityCounts(num_layers=2, num_experts=4, decay=0.9)
    counts.update(torch.tensor([[4, 3, 2, 1], [1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    is_closed_L2N = ~guidance_mask(counts, 0.25, 2)
    assert is_closed_L2N.nonzero().tolist() == [[0, 0, 0], [0, 1, 3], [1, 0, 3], [1, 1, 0]]


def test_guidance_mask_keeps_at_least_k_experts_open():
    counts = counted(vision=[8, 7, 6, 5], text=[1, 2, 3, 4])
    assert guidance_mask(counts, 0.9, 3).sum(-1).tolist() == [[3, 3]]
    assert guidance_mask(counts, 0.9, 4).all()


def test_guidance_mask_of_nothing_counted_closes_nothing():
    assert guidance_mask(ModalityCounts(3, 8, 0.95), 0.25, 2).all()
    assert guidance_mask(counted(vision=[0] * 8, text=[5, 1, 9, 2, 0, 0, 3, 7]), 0.5, 2).all()
    assert guidance_mask(counted(vision=[3] * 8, text=[7] * 8), 0.5, 2).all()


def test_guidance_mask_breaks_ties_by_the_other_modality():
    # Vision chooses none of 1, 2, 3 (score 0 each); text relies most on 3, then 1.
    counts = counted(vision=[5, 0, 0, 0, 5, 5, 5, 5], text=[1, 6, 2, 9, 1, 1, 1, 1])
    assert closed(counts, 0.25)[1] == [1, 3]


def test_guidance_mask_closes_complete_ties_together_or_not_at_all():
    # Vision never chooses 1, 2, 3 and text uses them alike: two of three would be an arbitrary pick.
    counts = counted(vision=[5, 0, 0, 0, 5, 5, 5, 5], text=[1, 4, 4, 4, 1, 1, 1, 1])
    assert closed(counts, 0.25)[1] == []
    assert closed(counts, 0.375)[1] == [1, 2, 3]
    # Expert 0 is apart and is closed; the tie behind it does not fit any more.
    counts = counted(vision=[0, 1, 1, 9, 9, 9, 9, 9], text=[9, 9, 9, 1, 1, 1, 1, 1])
    assert closed(counts, 0.25)[1] == [0]


@pytest.mark.parametrize("fraction, expected", [(0.0, 0), (0.25, 2), (0.3, 2), (0.375, 3), (0.5, 4)])
def test_guidance_mask_floors_the_number_of_closed_experts(fraction, expected):
    counts = counted(vision=[8, 7, 6, 5, 4, 3, 2, 1], text=[1, 2, 3, 4, 5, 6, 7, 8])
    assert (~guidance_mask(counts, fraction, 2)).sum(-1).tolist() == [[expected, expected]]


def test_guidance_mask_floor_forgives_binary_fractions():
    counts = counted(vision=list(range(100, 0, -1)), text=list(range(1, 101)))
    assert int(0.29 * 100) == 28
    assert (~guidance_mask(counts, 0.29, 2)).sum(-1).tolist() == [[29, 29]]


def test_guidance_mask_refuses_more_active_experts_than_experts():
    with pytest.raises(ConfigError, match="More active experts"):
        guidance_mask(ModalityCounts(1, 4, 0.9), 0.25, 5)


def test_modality_counts_decay():
    counts = counted(vision=[8, 4], text=[2, 0])
    counts.update(torch.tensor([[1, 1]]), torch.tensor([[0, 3]]))
    assert counts.vision_LN.tolist() == [[5.0, 3.0]]
    assert counts.text_LN.tolist() == [[1.0, 3.0]]
    assert counts.vision_LN.dtype == torch.float64


def test_modality_counts_state_round_trip_is_exact_and_independent():
    counts = counted(vision=[8, 4], text=[2, 1])
    restored = ModalityCounts(1, 2, 0.5)
    state = counts.state_dict()
    restored.load_state_dict(state)
    state["vision_LN"].zero_()
    assert counts.vision_LN.tolist() == restored.vision_LN.tolist() == [[8.0, 4.0]]
    counts.update(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
    restored.update(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
    assert torch.equal(counts.vision_LN, restored.vision_LN) and torch.equal(counts.text_LN, restored.text_LN)


def test_modality_counts_refuse_the_state_of_another_model():
    with pytest.raises(CheckpointError, match="do not fit"):
        ModalityCounts(2, 4, 0.9).load_state_dict(ModalityCounts(2, 8, 0.9).state_dict())
    with pytest.raises(CheckpointError, match="do not fit"):
        ModalityCounts(2, 4, 0.9).load_state_dict({"vision_LN": torch.zeros(2, 4)})
