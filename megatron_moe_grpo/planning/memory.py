"""The most that one rank of each pipeline stage holds, phase by phase."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.models.registry import Architecture, family_of
from megatron_moe_grpo.planning.activations import Bytes, Kernels, Passage, stage_bytes
from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.model_weights import WeightBook
from megatron_moe_grpo.planning.optimizer_memory import BYTES, WeightMemory, weight_memory
from megatron_moe_grpo.planning.rollout_memory import (
    cache_bytes,
    decoded_together,
    rollout_working_bytes,
    trace_bytes,
)
from megatron_moe_grpo.planning.vision_activations import vision_bytes
from megatron_moe_grpo.planning.workload import Workload


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """What does not depend on the layout."""

    config: RunConfig
    hf_config: Mapping[str, Any]
    architecture: Architecture
    weights: WeightBook
    workload: Workload
    kernels: Kernels = "gpu"

    @classmethod
    def of(
        cls, config: RunConfig, hf_config: Mapping[str, Any], workload: Workload, kernels: Kernels = "gpu"
    ) -> "PlannedRun":
        """Reads sizes and weight map out of a `config.json` dict."""
        architecture = family_of(hf_config).parse_architecture(hf_config)
        weights = WeightBook(hf_config, architecture.text, config.model.freeze)
        return cls(config, hf_config, architecture, weights, workload, kernels)

    def unlike_stages(self, layout: Layout) -> list[int]:
        """One stage of each kind: the first, the last, and of the others one for each order of routed layers."""
        per_stage = self.architecture.text.num_layers // layout.pipeline
        kinds: dict[tuple, int] = {}
        for stage in range(layout.pipeline):
            layers = range(stage * per_stage, (stage + 1) * per_stage)
            routed = tuple(layer in self.architecture.text.moe_layers for layer in layers)
            # The fewer micro-batches, the later stages differ in how many are in flight: the earliest holds the most.
            kinds.setdefault((stage == 0, stage == layout.pipeline - 1, routed), stage)
        return list(kinds.values())

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation."""
        return BYTES[self.config.precision]


@dataclass(frozen=True)
class StageMemory:
    """One rank of one pipeline stage, bytes."""

    stage: int
    weights: WeightMemory
    reference: int
    """Weights of the reference policy."""
    activations: Bytes
    """Kept for the backward pass by all micro-batches in flight."""
    recomputed: float
    """The layer that is recomputed, as far as it exceeds what is gone by then."""
    working: float
    """Alive for a moment besides: bf16 logits beside fp32 ones; autograd's gradient of the largest weight."""
    records: float
    """What the step keeps besides: trace, inputs of all micro-batches, recorded router logits."""
    cache: int
    """Key-value cache of the rollouts."""
    rollout_working: int

    @property
    def always(self) -> float:
        """Held from start to end."""
        weights = self.weights
        return weights.weights + weights.gradients + weights.optimizer + self.reference

    @property
    def rollout(self) -> float:
        """While rolling out."""
        return self.always + self.cache + self.rollout_working

    @property
    def update(self) -> float:
        """While updating."""
        return self.always + self.records + self.activations.total() + self.recomputed + self.working

    @property
    def peak(self) -> float:
        return max(self.rollout, self.update)


def stage_memory(run: PlannedRun, layout: Layout, stage: int, assumptions: Assumptions) -> StageMemory:
    """Memory of a rank of that stage, without what the device itself takes."""
    text, workload, freeze = run.architecture.text, run.workload, run.config.model.freeze
    weights = weight_memory(run.weights.of_stage(layout, stage), layout, run.config.precision)
    passage = micro_batch_passage(run, layout, assumptions)
    one, recomputed = stage_bytes(passage, stage)
    if stage == 0:
        prompts = workload.prompts_per_micro_batch(layout)
        one += vision_bytes(run.architecture, workload.pictures, prompts, run.width, freeze)
    in_flight = min(workload.micro_batches(layout), layout.pipeline - stage)
    is_last = stage == layout.pipeline - 1
    return StageMemory(
        stage=stage,
        weights=weights,
        reference=weights.num_values * run.width if workload.has_reference else 0,
        activations=Bytes({name: count * in_flight for name, count in one.items()}),
        recomputed=recomputed,
        working=max(_logits_working(passage) if is_last else 0.0, weights.largest_trained),
        records=_records(run, layout),
        cache=cache_bytes(text, workload, layout, run.width) if workload.has_rollouts else 0,
        rollout_working=_rollout_working(run, layout, stage) if workload.has_rollouts else 0,
    )


def micro_batch_passage(run: PlannedRun, layout: Layout, assumptions: Assumptions) -> Passage:
    """One micro-batch of the update."""
    config, workload = run.config, run.workload
    return Passage(
        sizes=run.architecture.text,
        layout=layout,
        kernels=run.kernels,
        width=run.width,
        sequences=workload.sequences(layout),
        positions=workload.positions(layout),
        expert_imbalance=assumptions.expert_imbalance if layout.expert > 1 else 1.0,
        has_gate_loss=workload.has_rollouts and config.losses.gate_coefficient > 0,
        has_balance_loss=config.losses.load_balancing_coefficient > 0,
        has_mask=config.routing.guidance == "modality",
    )


def fits(peak_bytes: float, memory_bytes: float, assumptions: Assumptions) -> bool:
    """Whether a device of that size holds the peak."""
    return needed_bytes(peak_bytes, assumptions) <= memory_bytes


def needed_bytes(peak_bytes: float, assumptions: Assumptions) -> float:
    """With what the allocator loses and the device takes."""
    return peak_bytes / (1 - assumptions.fragmentation) + assumptions.reserved_bytes


def _logits_working(passage: Passage) -> float:
    """bf16 logits beside their fp32 copy, or the bf16 gradient beside the fp32 one."""
    return passage.share * passage.sizes.vocab_size * passage.width if passage.width != 4 else 0.0


def _records(run: PlannedRun, layout: Layout) -> float:
    """Of all micro-batches of a rank: they live through the whole update."""
    text, workload = run.architecture.text, run.workload
    prompts = workload.prompts_per_rank(layout)
    tokens = prompts * workload.group_size * workload.positions(layout)
    # Token ids, labels and slots (int64), masks, old log-probs.
    inputs = tokens * 40 + (prompts * workload.pictures.num_pixel_values * 4)
    logits = tokens / layout.tensor * len(text.moe_layers) / layout.pipeline * 2 * (text.num_experts or 0) * 4
    return inputs + logits + (trace_bytes(text, workload, layout) if workload.has_rollouts else 0)


def _rollout_working(run: PlannedRun, layout: Layout, stage: int) -> int:
    text, workload = run.architecture.text, run.workload
    working = rollout_working_bytes(text, workload, layout, run.width)
    if stage == 0:
        prompts = decoded_together(workload, layout) // workload.group_size
        working += prompts * workload.pictures.num_tokens * text.hidden_size * run.width
        working += workload.prompts_per_rank(layout) * workload.pictures.num_pixel_values * 4
    return working
