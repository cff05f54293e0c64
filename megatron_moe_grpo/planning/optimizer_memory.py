"""Bytes of weights, gradients and optimizer on one rank, as Megatron's buffers hold them: padding included.

Sources, megatron-core 0.16.1: `_ParamAndGradBuffer.__init__` (distributed/param_and_grad_buffer.py) puts trained
parameters and their fp32 gradients into one buffer for each of dense and expert parameters, starts every parameter at a
multiple of 64 values, and ends a bucket at a multiple of lcm(copies, 128); without overlap there is one bucket.
`DistributedOptimizer` gives each of the copies an equal slice: fp32 masters where weights are bf16, and Adam's two
moments, for the parameters in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.model_weights import StageWeight

PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class WeightMemory:
    """Of one rank."""

    num_values: int
    """Weights, padding not counted."""
    num_trained: int
    weights: int
    """Bytes, with padding."""
    gradients: int
    """fp32, with padding."""
    optimizer: float
    """Masters and moments.  The mean over the copies: slices hold whole parts of parameters, and some more padding."""
    largest_trained: int
    """Bytes of the largest trained parameter: autograd's own gradient of it, before it is added to the buffer."""


def weight_memory(weights: Sequence[StageWeight], layout: Layout, precision: str) -> WeightMemory:
    """Memory of a rank that holds these parameters."""
    width = BYTES[precision]
    trained = [weight for weight in weights if weight.is_trained]
    frozen = sum(weight.num_values for weight in weights if not weight.is_trained)
    dense = [weight for weight in trained if not weight.is_expert]
    expert = [weight for weight in trained if weight.is_expert]
    # Moments twice 4 bytes; with bf16 weights an fp32 master besides.
    state_bytes = 8 if precision == "fp32" else 12
    # A buffer belongs to the copies of its parameters; without expert parallelism all of them are dense ones.
    buffers = [(part, copies) for part, copies in ((dense, layout.data), (expert, layout.expert_data)) if part]
    padded = sum(buffer_values(part, copies) for part, copies in buffers)
    slices = sum(sum(weight.num_values for weight in part) / copies for part, copies in buffers)
    return WeightMemory(
        num_values=sum(weight.num_values for weight in weights),
        num_trained=sum(weight.num_values for weight in trained),
        weights=(padded + frozen) * width,
        gradients=padded * 4,
        optimizer=slices * state_bytes,
        largest_trained=max((weight.num_values for weight in trained), default=0) * width,
    )


def buffer_values(weights: Sequence[StageWeight], copies: int) -> int:
    """Values of one buffer: last parameter first, aligned, a tied embedding in a bucket of its own."""
    divisor = math.lcm(copies, BUCKET_ALIGNMENT)
    end, num_in_bucket = 0, 0
    for weight in reversed(weights):
        start = _padded(end, PARAMETER_ALIGNMENT)
        if weight.is_shared_embedding and num_in_bucket:
            start, num_in_bucket = _padded(start, divisor), 0
        end, num_in_bucket = start + weight.num_values, num_in_bucket + 1
        if weight.is_shared_embedding:
            end, num_in_bucket = _padded(end, divisor), 0
    return _padded(end, divisor)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
