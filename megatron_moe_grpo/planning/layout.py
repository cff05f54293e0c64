"""A parallel layout of W ranks, its groups, and whether training would accept it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_moe_grpo.config.checks import check_config, check_data_parallel
from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.schema import ParallelConfig, RunConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.mcore.parallel import check_world
from megatron_moe_grpo.mcore.transformer_config import check_fits


@dataclass(frozen=True)
class Group:
    """Ranks that talk to each other: `size` of them, `stride` apart."""

    name: str
    size: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """Megatron's axes over a world.  Rank order is Megatron's default, tensor - expert - data - pipeline."""

    parallel: ParallelConfig
    world_size: int

    @property
    def tensor(self) -> int:
        return self.parallel.tensor

    @property
    def pipeline(self) -> int:
        return self.parallel.pipeline

    @property
    def expert(self) -> int:
        return self.parallel.expert

    @property
    def expert_tensor(self) -> int:
        return self.parallel.expert_tensor or self.parallel.tensor

    @property
    def data(self) -> int:
        """Data-parallel size; expert-parallel ranks count, they see different prompts."""
        return self.world_size // (self.tensor * self.pipeline)

    @property
    def expert_data(self) -> int:
        """Copies of each expert."""
        return self.world_size // (self.expert_tensor * self.expert * self.pipeline)

    @property
    def groups(self) -> dict[str, Group]:
        """By name, as megatron.core.parallel_state (0.16.1) lays them out."""
        inner = self.expert_tensor * self.expert
        found = (
            Group("tensor", self.tensor, 1),
            Group("data", self.data, self.tensor),
            Group("pipeline", self.pipeline, self.world_size // self.pipeline),
            Group("expert", self.expert, self.expert_tensor),
            Group("expert-tensor", self.expert_tensor, 1),
            Group("expert-tensor x expert", inner, 1),
            Group("expert-data", self.expert_data, inner),
        )
        return {group.name: group for group in found}

    @property
    def cuts(self) -> str:
        """The sizes that the recipe sets."""
        return (
            f"tensor {self.tensor}, pipeline {self.pipeline}, expert {self.expert}, expert_tensor {self.expert_tensor}"
        )

    def __str__(self) -> str:
        return f"{self.cuts}, data {self.data}, recompute {self.parallel.recompute}"


def why_illegal(config: RunConfig, sizes: DecoderSizes, layout: Layout) -> ConfigError | None:
    """What `train` would refuse the layout with; None: it would not.  The same checks, in the same order."""
    config = config.model_copy(update={"parallel": layout.parallel})
    try:
        check_config(config, sizes)
        check_world(layout.parallel, layout.world_size)
        check_data_parallel(config, layout.data)
        # For GPUs, whatever this machine is: the check for a CPU does not apply to a model on the meta device.
        with torch.device("meta"):
            check_fits(sizes, layout.parallel)
    except ConfigError as error:
        return error
    return None


def candidate_layouts(config: RunConfig, sizes: DecoderSizes, world_size: int) -> Iterator[Layout]:
    """Every way to cut the world by sizes that divide it; experts whole or as tensor-parallel as the rest.

    Only one recompute mode, the recipe's: legality does not depend on it.
    """
    divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
    experts = divisors if sizes.num_experts else [1]
    for tensor, pipeline, expert in itertools.product(divisors, divisors, experts):
        for expert_tensor in {1, tensor} if sizes.num_experts else {tensor}:
            update = {"tensor": tensor, "pipeline": pipeline, "expert": expert, "expert_tensor": expert_tensor}
            yield Layout(config.parallel.model_copy(update=update), world_size)
