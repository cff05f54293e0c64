"""How long a step may take: an estimate from peak rates and assumed efficiencies, never a measurement."""

from dataclasses import dataclass, replace

from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.communication import (
    Traffic,
    decode_forward,
    forwards_per_step,
    prefill_forward,
    step_traffic,
    update_forward,
)
from megatron_moe_grpo.planning.flops import Flops, Forward, forward_flops
from megatron_moe_grpo.planning.hardware import Machine
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.model_weights import StageWeight

# fp32 products run without tensor cores: A100 and H100 data sheets give 1/16 and 1/15 of their bf16 peak.
FP32_SLOWDOWN = 16


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one step."""

    rollout_s: float
    reference_s: float
    update_s: float
    """Forward, backward and recomputation of all micro-batches, with what their layers exchange."""
    bubble_s: float
    """Pipeline stages that wait, included in `update_s`."""
    gradients_s: float
    """Reducing gradients, the optimizer, gathering weights."""
    flops: float
    """Of the whole step on the slowest stage's rank."""

    @property
    def total_s(self) -> float:
        return self.rollout_s + self.reference_s + self.update_s + self.gradients_s


def step_time(run: PlannedRun, layout: Layout, machine: Machine, assumptions: Assumptions) -> StepTime:
    """Of the slowest rank.  Nothing overlaps; rollouts pass through pipeline stages one after another."""
    clock = _Clock(run, layout, machine, assumptions)
    stages = range(layout.pipeline)
    micro_batches = run.workload.micro_batches(layout)
    updates = [clock.update_s(stage) for stage in stages]
    slowest = max(updates)
    bubble_s = slowest * (layout.pipeline - 1) * run.workload.updates
    update_s = slowest * micro_batches * run.workload.updates + bubble_s
    references = [clock.reference_s(stage) for stage in stages] if run.workload.has_reference else [0.0]
    return StepTime(
        rollout_s=sum(clock.rollout_s(stage) for stage in stages) if run.workload.has_rollouts else 0.0,
        reference_s=max(references) * (micro_batches + layout.pipeline - 1),
        update_s=update_s,
        bubble_s=bubble_s,
        gradients_s=max(clock.gradients_s(stage) for stage in stages),
        flops=max(clock.flops(stage) for stage in stages),
    )


class _Clock:
    """Times of one stage."""

    def __init__(self, run: PlannedRun, layout: Layout, machine: Machine, assumptions: Assumptions):
        self._run, self._layout, self._machine, self._assumptions = run, layout, machine, assumptions
        self._traffic = [step_traffic(run, layout, stage) for stage in range(layout.pipeline)]
        peak = machine.gpu.dense_bf16_flops
        if run.config.precision == "fp32":
            peak /= FP32_SLOWDOWN
        self._flops_per_s = peak * assumptions.matmul_efficiency
        self._bytes_per_s = machine.gpu.memory_bytes_per_s * assumptions.memory_efficiency
        self._launch_s = run.architecture.text.num_layers // layout.pipeline * assumptions.layer_launch_s

    def update_s(self, stage: int) -> float:
        """One micro-batch, forward and backward."""
        passes = self._update_flops(stage) / self._flops_per_s
        launches_s = self._launch_s * (4 if self._layout.parallel.recompute == "full" else 3)
        exchanged = [part for part in self._traffic[stage] if part.phase == "update" and not _is_once(part)]
        per_micro_batch = self._run.workload.micro_batches(self._layout) * self._run.workload.updates
        return max(passes, launches_s) + self._communication_s(exchanged) / per_micro_batch

    def reference_s(self, stage: int) -> float:
        """One micro-batch, forward only."""
        flops = self._forward_flops(stage, update_forward(self._run, self._layout)).total
        exchanged = [part for part in self._traffic[stage] if part.phase == "reference"]
        micro_batches = self._run.workload.micro_batches(self._layout)
        return max(flops / self._flops_per_s, self._launch_s) + self._communication_s(exchanged) / micro_batches

    def rollout_s(self, stage: int) -> float:
        """All of the rank's rollouts in this stage."""
        run, layout = self._run, self._layout
        prefill = self._forward_flops(stage, prefill_forward(run, layout)).total
        prefill_s = max(prefill / self._flops_per_s, self._launch_s)
        decode = self._forward_flops(stage, decode_forward(run, layout)).total
        read_s = self._decode_bytes(stage) / self._bytes_per_s
        decode_s = max(decode / self._flops_per_s, read_s, self._launch_s)
        batches = forwards_per_step(run, layout)
        computed_s = batches * (prefill_s + (run.workload.new_tokens - 1) * decode_s)
        return computed_s + self._communication_s([part for part in self._traffic[stage] if part.phase == "rollout"])

    def gradients_s(self, stage: int) -> float:
        """All optimizer steps of a step; the optimizer reads and writes its slice once."""
        exchanged = [part for part in self._traffic[stage] if _is_once(part)]
        weights = self._weights(stage)
        layout, updates = self._layout, self._run.workload.updates
        slices = sum(count / (layout.expert_data if is_expert else layout.data) for count, is_expert in weights)
        # Gradient, master and two moments are read, and all but the gradient written.
        return self._communication_s(exchanged) + updates * slices * 28 / self._bytes_per_s

    def flops(self, stage: int) -> float:
        """Of a step."""
        run, layout = self._run, self._layout
        workload, micro_batches = run.workload, run.workload.micro_batches(layout)
        total = self._update_flops(stage) * micro_batches * workload.updates
        if workload.has_reference:
            total += self._forward_flops(stage, update_forward(run, layout)).total * micro_batches
        if workload.has_rollouts:
            prefill = self._forward_flops(stage, prefill_forward(run, layout)).total
            decode = self._forward_flops(stage, decode_forward(run, layout)).total
            total += forwards_per_step(run, layout) * (prefill + (workload.new_tokens - 1) * decode)
        return total

    def _update_flops(self, stage: int) -> float:
        """Backward costs two forwards; recomputation one more of what it repeats."""
        flops = self._forward_flops(stage, update_forward(self._run, self._layout))
        mode = self._layout.parallel.recompute
        total = 3 * flops.total
        if mode == "full":
            total += flops.decoder + flops.experts
        elif mode == "moe":
            total += flops.experts
        # A frozen vision tower needs no backward pass: nothing before it is trained.
        return total - 2 * flops.vision if "vision_tower" in self._run.config.model.freeze else total

    def _forward_flops(self, stage: int, batch: Forward) -> Flops:
        imbalance = self._assumptions.expert_imbalance if self._layout.expert > 1 else 1.0
        return forward_flops(self._run, self._layout, stage, batch, imbalance)

    def _decode_bytes(self, stage: int) -> float:
        """Weights that one decode step reads, experts as far as some token chose them, and the cache so far."""
        run, layout, sizes = self._run, self._layout, self._run.architecture.text
        batch = decode_forward(run, layout)
        weights = sum(part.num_values for part in self._decoder_weights(stage) if ".local_experts." not in part.name)
        experts = sum(part.num_values for part in self._decoder_weights(stage) if ".local_experts." in part.name)
        if sizes.num_experts:
            missed = (1 - sizes.num_active / sizes.num_experts) ** (batch.sequences * layout.expert)
            weights += experts * (1 - missed)
        heads = sizes.num_kv_heads // layout.tensor
        cached = 2 * sizes.num_layers // layout.pipeline * batch.sequences * batch.context * heads * sizes.head_dim
        return (weights + cached) * run.width

    def _decoder_weights(self, stage: int) -> list[StageWeight]:
        parts = self._run.weights.of_stage(self._layout, stage)
        return [part for part in parts if part.name.startswith("language_model.") and "word_embed" not in part.name]

    def _weights(self, stage: int) -> list[tuple[int, bool]]:
        parts = self._run.weights.of_stage(self._layout, stage)
        return [(part.num_values, part.is_expert) for part in parts if part.is_trained]

    def _communication_s(self, traffic: list[Traffic]) -> float:
        efficiency, latency_s = self._assumptions.link_efficiency, self._assumptions.collective_latency_s
        imbalance = self._assumptions.expert_imbalance
        return sum(
            replace(part, input_bytes=part.input_bytes * (imbalance if part.what.startswith("tokens") else 1)).seconds(
                self._machine, efficiency, latency_s
            )
            for part in traffic
        )


def _is_once(part: Traffic) -> bool:
    """Once an optimizer step, not once a micro-batch."""
    return part.phase == "update" and (part.what == "weights" or part.what.startswith("gradient"))
