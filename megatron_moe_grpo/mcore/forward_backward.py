"""Megatron's forward-backward schedule over micro-batches, with or without pipeline stages, and its forward half.

Scaling, derived once: a micro-batch's loss is a mean over its own sequences.  Megatron divides it by the number of
micro-batches and its data-parallel wrapper averages over data ranks, so with equal micro-batches the step's gradient is
that of the mean over all sequences of the step, whatever the split.  Terms that routers attach with
MoEAuxLossAutoScaler get the same factor (schedules.py sets it), so they too are written as means over the
micro-batch's sequences.  Expert gradients gather tokens from all expert-parallel ranks and are scaled by
Megatron to the same mean.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Module

MicroBatch = TypeVar("MicroBatch")
Metrics = dict[str, Tensor]


def forward_backward(
    model: Module,
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[Module, MicroBatch], Tensor],
    loss: Callable[[MicroBatch, Tensor], tuple[Tensor, Metrics]],
    num_positions: int,
    num_sequences: int,
) -> list[Metrics]:
    """Runs all micro-batches forward and backward and finishes the gradients; returns each one's metrics.

    Args:
        forward: the model's output for a micro-batch; called on every pipeline stage.
        loss: scalar loss and detached metrics of an output; called on the last stage only.
        num_positions: S, the same for all micro-batches.
        num_sequences: B of a micro-batch, the same for all.
    """
    return _run_schedule(model, micro_batches, forward, loss, num_positions, num_sequences, forward_only=False)


def forward_only(
    model: Module,
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[Module, MicroBatch], Tensor],
    num_positions: int,
    num_sequences: int,
) -> list[Tensor]:
    """The model's output for every micro-batch, without gradient; empty on all but the last pipeline stage.

    Arguments as for `forward_backward`.
    """
    with torch.no_grad():
        kept = _run_schedule(
            model, micro_batches, forward, _keep_output, num_positions, num_sequences, forward_only=True
        )
    return [output["output"] for output in kept]


def _run_schedule(
    model: Module,
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[Module, MicroBatch], Tensor],
    loss: Callable[[MicroBatch, Tensor], tuple[Tensor, Metrics]],
    num_positions: int,
    num_sequences: int,
    forward_only: bool,
) -> list[Metrics]:
    def forward_step(batches: Iterator[MicroBatch], module: Module) -> tuple[Tensor, Callable]:
        batch = next(batches)
        return forward(module, batch), partial(loss, batch)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(micro_batches),
        model=[model],
        num_microbatches=len(micro_batches),
        seq_length=num_positions,
        micro_batch_size=num_sequences,
        forward_only=forward_only,
    )


def _keep_output(batch: object, output: Tensor) -> tuple[Tensor, Metrics]:
    """In the place of a loss: Megatron hands back the second value of each micro-batch."""
    return output.new_zeros(()), {"output": output.detach()}
