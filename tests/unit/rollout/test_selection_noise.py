"""Noise drawn many decode steps ahead is the noise of each position, however many steps are drawn together."""

from types import SimpleNamespace

import pytest
import torch

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.mcore.moe_layers import RouterSizes
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.rollout import decode
from megatron_moe_grpo.rollout.decode import DecodeSettings, _SelectionNoise
from megatron_moe_grpo.routing.trace import RouteMode

CONFIG = SimpleNamespace(num_layers=3, num_moe_experts=4, moe_router_topk=2, moe_layer_freq=[1, 0, 1])
STREAM_B = torch.tensor([5, 9, 2])
MAX_NEW_TOKENS = 6


def settings(mode: RouteMode = RouteMode.SAMPLE, guidance: str = "modality") -> DecodeSettings:
    return DecodeSettings(mode, SelectionPolicy(guidance=guidance, seed=3), MAX_NEW_TOKENS, 0, torch.tensor([0]))


def left_padded(lengths: list[int]) -> TokenBatch:
    width = max(lengths)
    is_real_BS = torch.tensor([[column >= width - length for column in range(width)] for length in lengths])
    zeros_BS = torch.zeros_like(is_real_BS, dtype=torch.long)
    return TokenBatch(zeros_BS, is_real_BS, zeros_BS - 1, None)


@pytest.mark.parametrize("steps_together", [1, 2, 4, 100])
def test_noise_of_each_step_is_that_of_its_position(monkeypatch: pytest.MonkeyPatch, steps_together: int) -> None:
    monkeypatch.setattr(decode, "STEPS_TOGETHER", steps_together)
    noise = _SelectionNoise(SimpleNamespace(config=CONFIG), STREAM_B, settings())
    policy, batch = settings().policy, left_padded([4, 2, 3])
    is_open_B1 = torch.ones(3, 1, dtype=torch.bool)
    for step in range(MAX_NEW_TOKENS):
        got_LBSN = noise.of_step(step, batch)
        new_BS = batch.position_BS if step == 0 else batch.position_BS[:, -1:]
        expected_LBSN = policy.noise_LBSN(STREAM_B, new_BS, RouterSizes(num_layers=2, num_experts=4, num_active=2))
        assert got_LBSN.shape == expected_LBSN.shape
        assert torch.equal(got_LBSN[:, is_open_B1[:, 0]], expected_LBSN[:, is_open_B1[:, 0]])
        # The second sequence ends on the way; the others must not notice.
        is_open_B1 = torch.tensor([[True], [step < 1], [True]])
        batch = batch.extended(torch.zeros(3, 1, dtype=torch.long), is_open_B1)


@pytest.mark.parametrize("chosen", [settings(RouteMode.TOP_K), settings(guidance="none")])
def test_nothing_is_drawn_where_nothing_is_sampled(chosen: DecodeSettings) -> None:
    noise = _SelectionNoise(SimpleNamespace(config=CONFIG), STREAM_B, chosen)
    assert noise.of_step(0, left_padded([2, 2, 2])) is None


def test_a_dense_model_draws_nothing() -> None:
    model = SimpleNamespace(config=SimpleNamespace(num_layers=2, num_moe_experts=None))
    assert _SelectionNoise(model, STREAM_B, settings()).of_step(0, left_padded([2, 2, 2])) is None
