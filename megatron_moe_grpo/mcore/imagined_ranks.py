"""Ranks of a layout that no process runs, to ask each what it would hold: one process imagines a thousand."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

# Its import makes torch know the backend "fake", whose collectives return at once with nothing done.
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel


@contextmanager
def imagined_rank(parallel: ParallelConfig, rank: int, world_size: int) -> Iterator[ParallelLayout]:
    """Megatron's process groups as that rank would see them; there must be none yet.  Nothing computes in them."""
    assert not dist.is_initialized(), "process groups are there already"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield start_parallel(parallel, seed=0)
    finally:
        stop_parallel()


def smallest_world_size(parallel: ParallelConfig) -> int:
    """The fewest ranks that hold a whole model; more are copies of them."""
    expert_tensor = parallel.expert_tensor or parallel.tensor
    return parallel.pipeline * math.lcm(parallel.tensor, expert_tensor * parallel.expert)
