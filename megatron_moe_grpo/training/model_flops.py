"""Floating-point operations that the model's mathematics asks for, and the peak that they are compared with.

As is usual for model FLOPs utilisation: real tokens only (no padding), backward twice the forward, attention as if
every position saw its whole sequence, nothing for recomputation.  A run that pads or recomputes shows a lower share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch

from megatron_moe_grpo.config.schema import ParallelConfig, RunConfig
from megatron_moe_grpo.planning.flops import Forward, forward_flops, vision_flops
from megatron_moe_grpo.planning.hardware import find_gpu
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.step_time import FP32_SLOWDOWN
from megatron_moe_grpo.planning.workload import make_workload, pictures_of_rows
from megatron_moe_grpo.rollout.prompts import EncodedRow

# torch.cuda.get_device_name -> planning/hardware.py.  Exact names: an "H100 PCIe" or "H100 NVL" has another peak.
GPU_OF_DEVICE: Mapping[str, str] = MappingProxyType(
    {
        "NVIDIA A100-SXM4-40GB": "a100-80g",
        "NVIDIA A100-SXM4-80GB": "a100-80g",
        "NVIDIA H100 80GB HBM3": "h100-80g",
        "NVIDIA H200": "h200-141g",
        "NVIDIA B200": "b200",
    }
)
# Rows whose pictures are looked at: a run may have millions.
NUM_LOOKED_AT = 100
WHOLE = Layout(ParallelConfig(), world_size=1)


@dataclass(frozen=True)
class Passes:
    """Sequences that go through the model in a step, all ranks together."""

    num_sequences: float
    num_tokens: float
    """Fed to the model, padding not counted."""
    num_vision_tokens: float
    """Of the pictures that the vision tower sees: a group's once."""


class ModelFlops:
    """Counts for one architecture."""

    def __init__(
        self, config: RunConfig, hf_config: Mapping[str, Any], rows: Sequence[EncodedRow], vision_ids: set[int]
    ):
        """
        Args:
            rows: of the run; the pictures of one of the first stand for all, token by token.
        """
        with_pictures = islice((row for row in rows if row.row.visuals), NUM_LOOKED_AT)
        pictures = pictures_of_rows(hf_config, list(with_pictures) or rows[:1], sorted(vision_ids))
        self._run = PlannedRun.of(config, hf_config, make_workload(config, 1, 1, pictures, "the rows"))
        # Nothing before the vision tower is trained: frozen, it has no backward pass.
        self._vision_updates = 1 if "vision_tower" in config.model.freeze else 3
        self._vision = 0.0
        if pictures.num_tokens:
            self._vision = vision_flops(self._run.architecture, self._run, 1) / pictures.num_tokens

    def forward(self, passes: Passes, num_logits: float) -> float:
        """Of one forward pass, the output layer working on `num_logits` positions in all."""
        return self._decoder(passes, num_logits) + self._vision * passes.num_vision_tokens

    def update(self, passes: Passes) -> float:
        """Of forward and backward, logits at every position."""
        vision = self._vision_updates * self._vision * passes.num_vision_tokens
        return 3 * self._decoder(passes, passes.num_tokens) + vision

    def _decoder(self, passes: Passes, num_logits: float) -> float:
        # One long sequence whose attention reaches as far as that of a mean one: counts and lengths need not divide.
        batch = Forward(
            sequences=1,
            positions=round(passes.num_tokens),
            context=round(passes.num_tokens / passes.num_sequences),
            num_prompts=0,
            splits_positions=False,
            num_logits=round(num_logits),
        )
        return forward_flops(self._run, WHOLE, 0, batch).total


def peak_flops(device: torch.device, config: RunConfig) -> float | None:
    """Peak operations a second of one process's device; None on a CPU and on a GPU that is not in the table.

    A CPU's peak is in no table, and measured beside other work it would be wrong.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in GPU_OF_DEVICE:
        return None
    peak = find_gpu(GPU_OF_DEVICE[name]).dense_bf16_flops
    return peak / FP32_SLOWDOWN if config.precision == "fp32" else peak
