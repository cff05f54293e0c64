from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from megatron_moe_grpo.errors import TraceError
from megatron_moe_grpo.routing.trace import RoutingTrace, TraceLedger


def make_trace(num_sequences: int = 3, num_positions: int = 4, seed: int = 0, masked: bool = True) -> RoutingTrace:
    """2 layers, 8 experts, K = 2."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(num_sequences, num_positions, 2, 8, generator=generator)
    return RoutingTrace(
        experts_BSLK=logits.topk(2).indices.to(torch.int16),
        logprob_BSL=-torch.rand(num_sequences, num_positions, 2, generator=generator),
        is_allowed_L2N=torch.ones(2, 2, 8, dtype=torch.bool) if masked else None,
    )


def assert_equal(first: RoutingTrace, second: RoutingTrace) -> None:
    assert torch.equal(first.experts_BSLK, second.experts_BSLK)
    assert torch.equal(first.logprob_BSL, second.logprob_BSL)


def test_trace_is_a_value():
    with pytest.raises(FrozenInstanceError):
        make_trace().logprob_BSL = torch.zeros(1)


def test_rows_then_cat_is_the_identity():
    trace = make_trace()
    joined = RoutingTrace.cat([trace.rows(0, 1), trace.rows(1, 3)])
    assert_equal(joined, trace)
    assert joined.is_allowed_L2N is trace.is_allowed_L2N


def test_select_picks_sequences_in_order():
    trace = make_trace()
    chosen = trace.select(torch.tensor([2, 0, 2]))
    assert_equal(chosen, RoutingTrace.cat([trace.rows(2, 3), trace.rows(0, 1), trace.rows(2, 3)]))


def test_pad_then_trim_is_the_identity():
    trace = make_trace()
    assert_equal(trace.pad_positions(2, 3).trim_positions(2, 6), trace)
    assert_equal(trace.pad_positions(0, 0), trace)


def test_pad_positions_holds_distinct_existing_experts():
    padded = make_trace().pad_positions(2, 1)
    assert padded.experts_BSLK.dtype == torch.int16
    assert padded.experts_BSLK[:, [0, 1, -1]].unique().tolist() == [0, 1]
    assert (padded.logprob_BSL[:, [0, 1, -1]] == 0).all()
    padded.validate(num_experts=8)


def test_cat_refuses_different_lengths_masks_and_nothing():
    with pytest.raises(TraceError, match="different shapes"):
        RoutingTrace.cat([make_trace(num_positions=4), make_trace(num_positions=5)])
    with pytest.raises(TraceError, match="different guidance masks"):
        RoutingTrace.cat([make_trace(), make_trace(masked=False)])
    other = replace(make_trace(), is_allowed_L2N=torch.zeros(2, 2, 8, dtype=torch.bool))
    with pytest.raises(TraceError, match="different guidance masks"):
        RoutingTrace.cat([make_trace(), other])
    with pytest.raises(TraceError, match="No routing traces"):
        RoutingTrace.cat([])


def test_validate_accepts_a_good_trace():
    make_trace().validate(num_experts=8)
    make_trace(masked=False).validate(num_experts=8)


@pytest.mark.parametrize(
    "experts, message",
    [
        ([3, 8], "does not exist"),
        ([-1, 3], "does not exist"),
        ([5, 5], "twice"),
    ],
)
def test_validate_refuses_bad_experts(experts, message):
    trace = make_trace()
    trace.experts_BSLK[1, 2, 0] = torch.tensor(experts, dtype=torch.int16)
    with pytest.raises(TraceError, match=message):
        trace.validate(num_experts=8)


def test_validate_names_the_place_of_a_repeated_expert():
    trace = make_trace()
    trace.experts_BSLK[1, 2, 0] = 5
    with pytest.raises(TraceError, match="sequence 1, position 2, layer 0"):
        trace.validate(num_experts=8)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.5])
def test_validate_refuses_what_is_not_a_log_probability(value):
    trace = make_trace()
    trace.logprob_BSL[0, 0, 0] = value
    with pytest.raises(TraceError, match="log-likelihood"):
        trace.validate(num_experts=8)


def test_validate_refuses_wrong_types_and_shapes():
    trace = make_trace()
    for bad in (
        replace(trace, experts_BSLK=trace.experts_BSLK.long()),
        replace(trace, logprob_BSL=trace.logprob_BSL.double()),
        replace(trace, logprob_BSL=trace.logprob_BSL[:, :-1]),
        replace(trace, is_allowed_L2N=torch.ones(2, 2, 4, dtype=torch.bool)),
    ):
        with pytest.raises(TraceError, match="wrong layout"):
            bad.validate(num_experts=8)


def replay_all(ledger: TraceLedger, *, is_recompute: bool = False) -> None:
    for micro_batch in range(2):
        for layer in (4, 5):
            ledger.record(micro_batch, layer, is_recompute=is_recompute)


def test_ledger_accepts_each_part_exactly_once():
    ledger = TraceLedger(2, [4, 5])
    replay_all(ledger)
    ledger.assert_consumed()


def test_ledger_accepts_recompute_only_where_it_is_on():
    ledger = TraceLedger(2, [4, 5], has_recompute=True)
    replay_all(ledger)
    with pytest.raises(TraceError, match="0 recompute replays instead of 1 and 1"):
        ledger.assert_consumed()
    replay_all(ledger, is_recompute=True)
    ledger.assert_consumed()
    without = TraceLedger(2, [4, 5])
    replay_all(without)
    replay_all(without, is_recompute=True)
    with pytest.raises(TraceError, match="4 parts"):
        without.assert_consumed()


def test_ledger_names_layer_and_counts_of_a_missing_or_repeated_part():
    ledger = TraceLedger(2, [4, 5])
    with pytest.raises(TraceError, match="layer 5, micro-batch 1: 0 forward"):
        ledger.assert_consumed()
    replay_all(ledger)
    ledger.record(0, 4)
    with pytest.raises(TraceError, match="layer 4, micro-batch 0: 2 forward") as caught:
        ledger.assert_consumed()
    assert "layer 5" not in str(caught.value)


def test_ledger_refuses_a_part_that_does_not_exist():
    ledger = TraceLedger(2, [4, 5])
    replay_all(ledger)
    ledger.record(2, 4)
    with pytest.raises(TraceError, match="layer 4, micro-batch 2: 1 forward .* instead of 0"):
        ledger.assert_consumed()
