"""One process with Megatron's groups."""

from collections.abc import Iterator

import pytest

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    """Megatron's process groups of this process alone."""
    layout = start_parallel(ParallelConfig(), seed=0)
    yield layout
    stop_parallel()
