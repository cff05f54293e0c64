"""A tiny model with its optimizer in a process group of its own: what a checkpoint of training is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tiny_checkpoints import ALONE, build_model

from megatron_moe_grpo.config.schema import OptimizerConfig
from megatron_moe_grpo.mcore.optimizer import TrainableModel, make_trainable
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel


@contextmanager
def trainable_model(assets: Path) -> Iterator[TrainableModel]:
    """Random weights; the group ends with the block."""
    start_parallel(ALONE, seed=0)
    try:
        yield make_trainable(build_model(assets), OptimizerConfig(learning_rate=1e-2), total_steps=10)
    finally:
        stop_parallel()


def train_a_step(trainable: TrainableModel) -> None:
    """Any step that changes every weight."""
    trainable.zero_gradients()
    for parameter in trainable.module.parameters():
        parameter.main_grad.copy_(torch.ones_like(parameter))
    trainable.scheduler.step(increment=1)
    trainable.optimizer.step()
