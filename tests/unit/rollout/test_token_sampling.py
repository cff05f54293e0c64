import pytest
import torch
from transformers import TopPLogitsWarper

from megatron_moe_grpo.rollout.token_sampling import choose_tokens, nucleus_logits


def test_nucleus_logits_by_hand():
    logits_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.9, 3), (0.99, 4), (1.0, 4)):
        assert nucleus_logits(logits_BV, top_p).isfinite().sum() == kept


def test_nucleus_logits_equals_transformers():
    logits_BV = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (0.1, 0.5, 0.9, 0.999):
        expected_BV = TopPLogitsWarper(top_p)(None, logits_BV)
        assert torch.equal(nucleus_logits(logits_BV, top_p), expected_BV)


def test_nucleus_logits_keeps_what_was_open_only():
    # Suppressed tokens come as -inf and must not come back.
    logits_BV = torch.tensor([[2.0, float("-inf"), 1.0, float("-inf")]])
    assert nucleus_logits(logits_BV, 0.99).isneginf().tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_choose_tokens_draws_from_the_law_it_says(temperature, top_p):
    logits_V = torch.tensor([1.0, 0.2, -0.5, -2.0])
    num = 40_000
    token_B = choose_tokens(
        logits_V.expand(num, 4), torch.arange(num), torch.zeros(num, 1, dtype=torch.int64), 3, temperature, top_p
    )
    share_V = torch.bincount(token_B, minlength=4) / num
    expected_V = nucleus_logits(logits_V[None] / temperature, top_p).softmax(-1)[0]
    # Five standard errors of a share at 40,000 draws: 0.0125; measured worst 0.004.
    assert torch.allclose(share_V, expected_V, atol=0.0125)


def test_choose_tokens_is_greedy_at_temperature_zero():
    logits_BV = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    token_B = choose_tokens(logits_BV, torch.arange(2), torch.zeros(2, 1, dtype=torch.int64), 0, 0.0, 0.5)
    assert token_B.tolist() == [1, 0]


def test_choose_tokens_depends_on_stream_and_position_not_on_the_batch():
    logits_BV = torch.zeros(6, 100)
    stream_B, position_B1 = torch.arange(6), torch.full((6, 1), 7)
    token_B = choose_tokens(logits_BV, stream_B, position_B1, 1, 1.0, 1.0)
    alone_B = choose_tokens(logits_BV[4:5], stream_B[4:5], position_B1[4:5], 1, 1.0, 1.0)
    assert token_B[4] == alone_B[0]
    assert len(set(token_B.tolist())) > 1
