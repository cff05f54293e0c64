"""Decoding ends when every sequence has ended, or when somebody asks."""

from types import SimpleNamespace

import pytest
import torch

from megatron_moe_grpo.rollout.interruption import StopRequested, all_closed, never

ALONE = SimpleNamespace(world_size=1)


class TwoRanks(SimpleNamespace):
    """The other rank has `num_open` open sequences, and asks or does not."""

    def maximum(self, values: torch.Tensor) -> None:
        torch.maximum(values, torch.tensor([self.num_open, float(self.asks)]), out=values)


@pytest.mark.parametrize(("is_open", "expected"), [([True, False], False), ([False, False], True)])
def test_all_closed_looks_at_every_sequence(is_open: list[bool], expected: bool) -> None:
    assert all_closed(torch.tensor(is_open), ALONE, never()) is expected


def test_all_closed_waits_for_other_ranks() -> None:
    closed_B = torch.tensor([False])
    assert not all_closed(closed_B, TwoRanks(world_size=2, num_open=1.0, asks=False), False)
    assert all_closed(closed_B, TwoRanks(world_size=2, num_open=0.0, asks=False), False)


def test_all_closed_stops_when_any_rank_asks() -> None:
    with pytest.raises(StopRequested):
        all_closed(torch.tensor([True]), ALONE, True)
    with pytest.raises(StopRequested):
        all_closed(torch.tensor([True]), TwoRanks(world_size=2, num_open=0.0, asks=True), False)
