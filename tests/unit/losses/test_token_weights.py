import pytest
import torch

from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights

# Two tokens and four.
IS_RESPONSE_BT = torch.tensor([[True, True, False, False], [True, True, True, True]])
BY_HAND = {
    "sequence_mean": [[1 / 4, 1 / 4, 0, 0], [1 / 8, 1 / 8, 1 / 8, 1 / 8]],
    "token_mean": [[1 / 6, 1 / 6, 0, 0], [1 / 6, 1 / 6, 1 / 6, 1 / 6]],
    "constant_length": [[1 / 8, 1 / 8, 0, 0], [1 / 8, 1 / 8, 1 / 8, 1 / 8]],
}


@pytest.mark.parametrize("weighting", BY_HAND)
def test_token_weights_by_hand(weighting) -> None:
    assert torch.equal(token_weights(IS_RESPONSE_BT, weighting), torch.tensor(BY_HAND[weighting]))


@pytest.mark.parametrize(
    ("weighting", "expected"), [("sequence_mean", 1 / 16), ("token_mean", 1 / 12), ("constant_length", 1 / 40)]
)
def test_token_weights_are_those_of_the_global_batch(weighting, expected) -> None:
    # The first sequence here, three elsewhere: 8 sequences of 12 tokens in all, at most 5 each.
    totals = BatchTotals(num_sequences=8, num_response_tokens=12.0, max_response_tokens=5)
    weight_BT = token_weights(IS_RESPONSE_BT[:1], weighting, totals)
    assert weight_BT[0].tolist() == pytest.approx([expected, expected, 0, 0])


@pytest.mark.parametrize("weighting", BY_HAND)
def test_token_weights_of_an_empty_response_are_zero(weighting) -> None:
    weight_BT = token_weights(torch.tensor([[False, False], [True, False]]), weighting)
    assert weight_BT[0].tolist() == [0.0, 0.0] and weight_BT[1, 0] > 0
    assert (token_weights(torch.zeros(2, 3, dtype=torch.bool), weighting) == 0).all()


def test_token_weights_add_up_to_one_or_to_the_used_share_of_the_length() -> None:
    sums = {name: float(token_weights(IS_RESPONSE_BT, name).sum()) for name in BY_HAND}
    assert sums == pytest.approx({"sequence_mean": 1, "token_mean": 1, "constant_length": 6 / 8})
