"""Process groups: one torchrun process or a thousand, described once and asked by name."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import ConfigError, MoeGrpoError

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class ParallelLayout:
    """Where this process stands.  Data parallelism counts the expert-parallel ranks: they see different prompts."""

    rank: int
    world_size: int
    data_rank: int
    data_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    is_first_stage: bool
    is_last_stage: bool
    data_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    tensor_group: dist.ProcessGroup

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """True on the one process that writes logs."""
        return self.rank == 0

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over data-parallel ranks, in place."""
        if self.data_size > 1:
            dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def sum_over_pipeline(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over pipeline stages, in place: stages that lack a part hold zeros for it."""
        if self.pipeline_size > 1:
            dist.all_reduce(tensor, group=self.pipeline_group)
        return tensor

    def sum_over_tensor(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over tensor-parallel ranks, in place: each holds a part of the positions."""
        if self.tensor_size > 1:
            dist.all_reduce(tensor, group=self.tensor_group)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """The largest value on any rank, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def from_last_stage(self, tensor: Tensor) -> Tensor:
        """The last pipeline stage's `tensor`, on every stage, in place."""
        if self.pipeline_size > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(tensor, source, group=self.pipeline_group)
        return tensor


def start_parallel(parallel: ParallelConfig, seed: int) -> ParallelLayout:
    """Starts torch.distributed (one process if torchrun did not set the world up) and Megatron's process groups."""
    if not dist.is_initialized():
        _start_distributed()
    world_size = dist.get_world_size()
    check_world(parallel, world_size)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        # A rank that is only imagined (imagined_ranks.py) has nobody to connect to.
        create_gloo_process_groups=dist.get_backend() != "fake",
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 1)
    return ParallelLayout(
        rank=dist.get_rank(),
        world_size=world_size,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel.tensor,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel.pipeline,
        is_first_stage=parallel_state.is_pipeline_first_stage(),
        is_last_stage=parallel_state.is_pipeline_last_stage(),
        data_group=parallel_state.get_data_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
    )


def on_main_rank(work: Callable[[], Result]) -> Result:
    """`work()` on the main rank, its result on all.  A user's error is raised on all: alone, it would hang them."""
    outcome: list = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except MoeGrpoError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def stop_parallel() -> None:
    """Ends Megatron's groups and torch.distributed."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _start_distributed() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)


def check_world(parallel: ParallelConfig, world_size: int) -> None:
    """Raises ConfigError where the sizes do not divide the number of processes; needs no process group."""
    model_size = parallel.tensor * parallel.pipeline
    if world_size % model_size:
        raise ConfigError(
            "the number of processes does not fit the parallel sizes",
            got=f"{world_size} processes",
            expected=f"a multiple of tensor x pipeline = {model_size}",
            remedy="change torchrun --nproc_per_node, parallel.tensor or parallel.pipeline",
        )
    expert_size = (parallel.expert_tensor or parallel.tensor) * parallel.pipeline * parallel.expert
    if world_size % expert_size:
        raise ConfigError(
            "the number of processes does not fit the expert-parallel sizes",
            got=f"{world_size} processes",
            expected=f"a multiple of expert_tensor x pipeline x expert = {expert_size}",
            remedy="for one process, pass --set parallel.expert=1",
        )
