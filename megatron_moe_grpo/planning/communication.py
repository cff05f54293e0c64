"""Bytes that one rank hands to collectives in a step, by phase, collective and group.

Counted as the tensors a rank passes in, which is what the test counts in a real run of two processes
(tests/unit/planning/test_communication.py); what travels is worked out from it (`Traffic.wire_bytes`).
Sources: megatron-core 0.16.1 `tensor_parallel/layers.py`, `moe/token_dispatcher.py`, `distributed/`,
and this package's mcore/decoding.py and rollout/decode.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megatron_moe_grpo.planning.flops import Forward
from megatron_moe_grpo.planning.hardware import Machine
from megatron_moe_grpo.planning.layout import Group, Layout
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.model_weights import StageWeight
from megatron_moe_grpo.planning.optimizer_memory import buffer_values
from megatron_moe_grpo.planning.rollout_memory import decoded_together

Collective = Literal["all-to-all", "all-gather", "reduce-scatter", "all-reduce", "send", "broadcast"]
FP32, INT64 = 4, 8


@dataclass(frozen=True)
class Traffic:
    """All calls of one kind in one phase of one step, on one rank."""

    phase: str
    collective: Collective
    group: Group
    what: str
    calls: float
    input_bytes: float
    """Of all calls: the tensors that the rank passes in."""

    @property
    def wire_bytes(self) -> float:
        """What the rank sends in a ring (all-to-all and send: directly)."""
        others = self.group.size - 1
        share = others / self.group.size
        factors = {"all-gather": others, "reduce-scatter": share, "all-to-all": share, "all-reduce": 2 * share}
        return self.input_bytes * (factors[self.collective] if self.collective in factors else float(others > 0))

    def seconds(self, machine: Machine, efficiency: float, latency_s: float) -> float:
        """Estimated time; nothing overlaps."""
        size, stride = self.group.size, self.group.stride
        if size == 1:
            return 0.0
        if self.collective == "all-to-all":
            outside = (size - machine.neighbours(size, stride)) / (size - 1)
            inside_s = self.wire_bytes * (1 - outside) / machine.gpu.link_bytes_per_s
            moving_s = max(inside_s, self.wire_bytes * outside / machine.gpu.network_bytes_per_s)
        else:
            moving_s = self.wire_bytes / machine.ring_bytes_per_s(size, stride)
        return moving_s / efficiency + self.calls * latency_s * math.ceil(math.log2(size))

    def times(self, factor: float) -> "Traffic":
        """So many of it."""
        return replace(self, calls=self.calls * factor, input_bytes=self.input_bytes * factor)


def step_traffic(run: PlannedRun, layout: Layout, stage: int) -> list[Traffic]:
    """Everything that a rank of the stage passes to collectives in a step; only groups of more than one rank."""
    workload = run.workload
    micro_batches = workload.micro_batches(layout)
    batch = update_forward(run, layout)
    found = [
        part.times(micro_batches * workload.updates)
        for part in _passes(run, layout, stage, batch, "update", has_backward=True)
    ]
    found += [part.times(workload.updates) for part in _gradient_traffic(run, layout, stage)]
    if workload.has_reference:
        forward = _passes(run, layout, stage, batch, "reference", has_backward=False)
        found += [part.times(micro_batches) for part in forward]
    if workload.has_rollouts:
        found += _rollout_traffic(run, layout, stage)
    return [part for part in found if part.group.size > 1 and part.calls > 0]


def update_forward(run: PlannedRun, layout: Layout) -> Forward:
    """One micro-batch of the update."""
    workload = run.workload
    positions, prompts = workload.positions(layout), workload.prompts_per_micro_batch(layout)
    return Forward(workload.sequences(layout), positions, positions, prompts, True, positions)


def prefill_forward(run: PlannedRun, layout: Layout) -> Forward:
    """A batch of prompts, decoded together."""
    sequences, positions = decoded_together(run.workload, layout), run.workload.prompt_positions(layout)
    return Forward(sequences, positions, positions, sequences // run.workload.group_size, False, 1)


def decode_forward(run: PlannedRun, layout: Layout) -> Forward:
    """One more token of each, half-way through the response."""
    prefill = prefill_forward(run, layout)
    return replace(prefill, positions=1, context=prefill.positions + run.workload.new_tokens // 2, num_prompts=0)


def forwards_per_step(run: PlannedRun, layout: Layout) -> int:
    """Batches of prompts that a rank decodes one after another."""
    together = decoded_together(run.workload, layout) // run.workload.group_size
    return -(-run.workload.prompts_per_rank(layout) // together)


def _passes(
    run: PlannedRun, layout: Layout, stage: int, batch: Forward, phase: str, has_backward: bool
) -> Iterator[Traffic]:
    """One forward pass with split positions, and its backward pass."""
    sizes, groups, mode = run.architecture.text, layout.groups, layout.parallel.recompute
    per_stage = sizes.num_layers // layout.pipeline
    routed = sum(layer // per_stage == stage for layer in sizes.moe_layers)
    tokens = batch.sequences * batch.positions
    part = tokens / layout.tensor * sizes.hidden_size * run.width
    forwards = 1 + (has_backward and mode == "full")
    expert_forwards = 1 + (has_backward and mode in ("full", "moe"))
    yield from _expert_traffic(run, layout, phase, tokens / layout.tensor, routed * expert_forwards, 0)
    if has_backward:
        yield from _expert_traffic(run, layout, phase, tokens / layout.tensor, 0, routed)
    halves = 2 * per_stage - routed
    gathers, scatters = forwards * halves, forwards * halves
    if has_backward:
        gathers, scatters = gathers + 2 * halves, scatters + halves
    tensor = groups["tensor"]
    is_last = stage == layout.pipeline - 1
    if is_last:
        gathers, scatters = gathers + (2 if has_backward else 1), scatters + has_backward
        yield Traffic(phase, "all-reduce", tensor, "cross-entropy", 3, 3 * tokens * FP32)
    if stage == 0:
        gathers += has_backward
        yield Traffic(phase, "all-reduce", tensor, "embeddings", 1, tokens * sizes.hidden_size * run.width)
    yield Traffic(phase, "all-gather", tensor, "positions", gathers, gathers * part)
    yield Traffic(phase, "reduce-scatter", tensor, "positions", scatters, scatters * part * layout.tensor)
    sends = (not is_last) + (has_backward and stage > 0)
    yield Traffic(phase, "send", groups["pipeline"], "hidden states", sends, sends * part)


def _expert_traffic(
    run: PlannedRun, layout: Layout, phase: str, tokens: float, forwards: int, backwards: int
) -> Iterator[Traffic]:
    """Tokens to their experts and back, for so many layer passes."""
    sizes, groups = run.architecture.text, layout.groups
    if not sizes.num_experts or forwards + backwards == 0:
        return
    sent, passes = tokens * sizes.num_active, forwards + backwards
    hidden = sent * sizes.hidden_size * run.width
    there_and_back = passes * (2 * hidden + sent * FP32)
    yield Traffic(phase, "all-to-all", groups["expert"], "tokens to experts", 3 * passes, there_and_back)
    both = groups["expert-tensor x expert"]
    counts = sizes.num_experts * INT64
    yield Traffic(phase, "all-gather", both, "tokens by expert", forwards, forwards * counts)
    inner, size = groups["expert-tensor"], layout.expert_tensor
    gathered = forwards * (hidden + sent * FP32) + backwards * hidden
    scattered = size * (forwards * hidden + backwards * (hidden + sent * FP32))
    yield Traffic(phase, "all-gather", inner, "tokens in experts", 2 * forwards + backwards, gathered)
    yield Traffic(phase, "reduce-scatter", inner, "tokens in experts", forwards + 2 * backwards, scattered)


def _gradient_traffic(run: PlannedRun, layout: Layout, stage: int) -> Iterator[Traffic]:
    """Once an optimizer step."""
    groups = layout.groups
    trained = [part for part in run.weights.of_stage(layout, stage) if part.is_trained]
    dense = [part for part in trained if not part.is_expert]
    experts = [part for part in trained if part.is_expert]
    # Dense and expert weights have an optimizer each, and each gathers all of the model's weights when it is done
    # (0.16.1, DistributedOptimizer.step_with_ready_grads): with both, everything is gathered twice.
    gathers = bool(dense) + bool(experts)
    for parts, name in ((dense, "data"), (experts, "expert-data")):
        if parts:
            group = groups[name]
            values = buffer_values(parts, group.size)
            yield Traffic("update", "reduce-scatter", group, "gradients", 1, values * FP32)
            gathered = gathers * values / group.size * run.width
            yield Traffic("update", "all-gather", group, "weights", gathers, gathered)
    repeated = sum(part.num_values for part in dense if _is_repeated(part))
    yield Traffic("update", "all-reduce", groups["tensor"], "gradients of norms and routers", 1, repeated * FP32)
    for part in dense:
        if part.is_shared_embedding:
            ends = Group("first and last stage", 2, groups["pipeline"].stride * (layout.pipeline - 1))
            yield Traffic("update", "all-reduce", ends, "gradient of the tied embedding", 1, part.num_values * FP32)


def _is_repeated(part: StageWeight) -> bool:
    """Whole on every tensor-parallel rank, and used on that rank's positions alone."""
    return ("norm.weight" in part.name and part.name.startswith("language_model.")) or ".router." in part.name


def _rollout_traffic(run: PlannedRun, layout: Layout, stage: int) -> list[Traffic]:
    workload, batches = run.workload, forwards_per_step(run, layout)
    prefill, decode = prefill_forward(run, layout), decode_forward(run, layout)
    found = [part.times(batches) for part in _rollout_forward(run, layout, stage, prefill)]
    steps = batches * (workload.new_tokens - 1)
    found += [part.times(steps) for part in _rollout_forward(run, layout, stage, decode)]
    sizes, groups = run.architecture.text, layout.groups
    if sizes.num_experts:
        positions = prefill.sequences * (prefill.positions + workload.new_tokens - 1)
        layers = len(sizes.moe_layers)
        joined = batches * positions * layers * (sizes.num_active + 1) * FP32
        found.append(Traffic("rollout", "all-reduce", groups["pipeline"], "routing traces", 2 * batches, joined))
    return found


def _rollout_forward(run: PlannedRun, layout: Layout, stage: int, batch: Forward) -> Iterator[Traffic]:
    """One forward without gradient and without split positions."""
    sizes, groups = run.architecture.text, layout.groups
    per_stage = sizes.num_layers // layout.pipeline
    routed = sum(layer // per_stage == stage for layer in sizes.moe_layers)
    tokens = batch.sequences * batch.positions
    yield from _expert_traffic(run, layout, "rollout", tokens, routed, 0)
    sums = 2 * per_stage - routed + (stage == 0)
    hidden = tokens * sizes.hidden_size * run.width
    yield Traffic("rollout", "all-reduce", groups["tensor"], "hidden states", sums, sums * hidden)
    is_last = stage == layout.pipeline - 1
    if is_last:
        logits = batch.sequences * sizes.vocab_size / layout.tensor * run.width
        yield Traffic("rollout", "all-gather", groups["tensor"], "logits", 1, logits)
    else:
        yield Traffic("rollout", "send", groups["pipeline"], "hidden states", 1, hidden)
    logits = batch.sequences * sizes.vocab_size * FP32
    yield Traffic("rollout", "broadcast", groups["pipeline"], "logits", 1, logits)
    yield Traffic("rollout", "all-reduce", groups["data"], "whether all have ended", 1, FP32)
