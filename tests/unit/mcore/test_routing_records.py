"""What routers recorded, worked out for all layers and several forwards at once, equals a token-by-token reading."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.mcore.moe_layers import RouterSizes
from megatron_moe_grpo.mcore.routing_context import LayerRecord, RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.routing_records import (
    join_forwards,
    recorded_entropy_L,
    recorded_experts_BSLK,
    recorded_logprob_BSL,
    recorded_top_k_L2N,
)
from megatron_moe_grpo.routing.trace import RouteMode

NUM_LAYERS, NUM_EXPERTS, NUM_ACTIVE = 3, 4, 2
IS_REAL_BS = torch.tensor([[False, True, True], [True, True, True]])
IS_VISION_BS = torch.tensor([[False, True, False], [True, False, False]])


def forward_of(
    positions: slice, layers: tuple[int, ...] = (0, 1, 2), mode: RouteMode = RouteMode.SAMPLE
) -> RoutingContext:
    """Records of the same random logits and experts at `positions`, as routers write them: position-major."""
    generator = torch.Generator().manual_seed(0)
    logits_LSBN = torch.randn(NUM_LAYERS, 3, 2, NUM_EXPERTS, generator=generator)
    experts_LSBK = torch.rand(NUM_LAYERS, 3, 2, NUM_EXPERTS, generator=generator).topk(NUM_ACTIVE).indices

    def local(tensor_SB: Tensor) -> Tensor:
        return tensor_SB[positions].flatten(0, 1)

    return RoutingContext(
        mode=mode,
        is_real_BS=IS_REAL_BS[:, positions],
        is_vision_BS=IS_VISION_BS[:, positions],
        sizes=RouterSizes(NUM_LAYERS, NUM_EXPERTS, NUM_ACTIVE),
        policy=SelectionPolicy(),
        record_by_layer={
            layer: LayerRecord(local(logits_LSBN[layer]), local(2 * logits_LSBN[layer]), local(experts_LSBK[layer]))
            for layer in layers
        },
    )


def token(
    context: RoutingContext, layer: int, sequence: int, position: int
) -> tuple[list[float], list[float], list[int]]:
    """logits, policy logits and experts of one token."""
    record, row = context.record_by_layer[layer], position * 2 + sequence
    return record.logits_MN[row].tolist(), record.policy_logits_MN[row].tolist(), record.experts_MK[row].tolist()


def test_records_equal_a_token_by_token_reading() -> None:
    context = forward_of(slice(0, 3))
    experts_BSLK, logprob_BSL = recorded_experts_BSLK(context), recorded_logprob_BSL(context)
    entropy_L, top_k_L2N = recorded_entropy_L(context), recorded_top_k_L2N(context)
    assert experts_BSLK.dtype == torch.int16
    for layer in range(NUM_LAYERS):
        entropy, counts_2N = 0.0, torch.zeros(2, NUM_EXPERTS)
        for sequence in range(2):
            for position in range(3):
                logits, policy, (first, second) = token(context, layer, sequence, position)
                assert experts_BSLK[sequence, position, layer].tolist() == [first, second]
                left = [policy[e] for e in range(NUM_EXPERTS) if e != first]
                expected = policy[first] - _logsumexp(policy) + policy[second] - _logsumexp(left)
                assert float(logprob_BSL[sequence, position, layer]) == pytest.approx(expected, abs=1e-5)
                if IS_REAL_BS[sequence, position]:
                    probs = [math.exp(z - _logsumexp(logits)) for z in logits]
                    entropy -= sum(p * math.log(p) for p in probs)
                    best = sorted(range(NUM_EXPERTS), key=lambda e: -logits[e])[:NUM_ACTIVE]
                    counts_2N[int(IS_VISION_BS[sequence, position]), best] += 1
        assert float(entropy_L[layer]) == pytest.approx(entropy, abs=1e-5)
        assert torch.equal(top_k_L2N[layer], counts_2N.double())


def test_join_forwards_equals_one_forward() -> None:
    parts = [forward_of(slice(0, 1)), forward_of(slice(1, 2)), forward_of(slice(2, 3))]
    joined, whole = join_forwards(parts), forward_of(slice(0, 3))
    assert torch.equal(recorded_experts_BSLK(joined), recorded_experts_BSLK(whole))
    assert torch.equal(recorded_logprob_BSL(joined), recorded_logprob_BSL(whole))
    assert torch.equal(recorded_entropy_L(joined), recorded_entropy_L(whole))
    assert torch.equal(recorded_top_k_L2N(joined), recorded_top_k_L2N(whole))


def test_join_forwards_keeps_which_positions_explored() -> None:
    explores_BS = torch.tensor([[False, False, True], [False, False, True]])
    parts = [replace(forward_of(slice(i, i + 1)), explores_BS=explores_BS[:, i : i + 1]) for i in range(3)]
    logprob_BSL = recorded_logprob_BSL(join_forwards(parts))
    assert (logprob_BSL[:, :2] == 0).all() and (logprob_BSL[:, 2] < 0).all()


def test_layers_of_other_stages_hold_zeros() -> None:
    stage, whole = forward_of(slice(0, 3), layers=(1,)), forward_of(slice(0, 3))
    for read, layer_axis in (
        (recorded_experts_BSLK, 2), (recorded_logprob_BSL, 2), (recorded_entropy_L, 0), (recorded_top_k_L2N, 0),
    ):  # fmt: skip
        values, expected = read(stage), read(whole)
        assert torch.equal(values.select(layer_axis, 1), expected.select(layer_axis, 1))
        assert values.select(layer_axis, 0).abs().sum() == 0 and values.select(layer_axis, 2).abs().sum() == 0


def test_a_stage_of_dense_layers_holds_zeros_of_the_same_shapes() -> None:
    stage, whole = forward_of(slice(0, 3), layers=()), forward_of(slice(0, 3))
    stage = join_forwards([stage])
    for recorded in (recorded_experts_BSLK, recorded_logprob_BSL, recorded_entropy_L, recorded_top_k_L2N):
        zeros, expected = recorded(stage), recorded(whole)
        assert (zeros.shape, zeros.dtype) == (expected.shape, expected.dtype)
        assert not zeros.any()


def test_deterministic_top_k_has_no_likelihood() -> None:
    assert (recorded_logprob_BSL(forward_of(slice(0, 3), mode=RouteMode.TOP_K)) == 0).all()


def _logsumexp(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))
