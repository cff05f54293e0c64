"""A plan as tables for a reader and as plain values for a program."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.communication import Traffic, step_traffic
from megatron_moe_grpo.planning.hardware import Machine
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun, StageMemory
from megatron_moe_grpo.planning.search import PlannedLayout, SearchResult

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Table:
    """A heading, lines of text, and rows under columns; no columns: text only."""

    title: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


def run_table(run: PlannedRun, world_size: int, gpu: str, machine: Machine) -> Table:
    """What is planned."""
    config, workload, hf_config = run.config, run.workload, run.hf_config
    counts = parameter_counts(family_of(hf_config).weight_map(hf_config), run.architecture.text.num_active)
    response = f"{workload.group_size} x {workload.new_tokens} new tokens" if workload.has_rollouts else "answers"
    return Table(
        f"Plan of {config.name} ({config.method}, {config.precision})",
        (
            f"model      {hf_config['model_type']}, {counts}",
            f"machine    {world_size:,} x {gpu}, {machine.gpus_per_node} a node",
            f"step       {workload.prompts_per_step:,} prompts of {workload.prompt_tokens} tokens, "
            f"{workload.pictures.num_tokens} of them image tokens; {response}; {workload.updates} update(s)",
            f"lengths    {workload.source}",
        ),
    )


def memory_table(plan: PlannedLayout, machine: Machine, assumptions: Assumptions) -> Table:
    """One column a kind of stage."""
    stages = plan.stages
    rows: list[list[object]] = [
        ["weights", *(stage.weights.weights / GIB for stage in stages)],
        ["gradients, fp32", *(stage.weights.gradients / GIB for stage in stages)],
        ["optimizer (this rank's slice)", *(stage.weights.optimizer / GIB for stage in stages)],
        ["reference policy", *(stage.reference / GIB for stage in stages)],
    ]
    names = list(dict.fromkeys(name for stage in stages for name in stage.activations))
    rows += [[f"activations: {name}", *(stage.activations[name] / GIB for stage in stages)] for name in names]
    rows += [
        ["layer that is recomputed", *(stage.recomputed / GIB for stage in stages)],
        ["working space of the update", *(stage.working / GIB for stage in stages)],
        ["routing trace and inputs", *(stage.records / GIB for stage in stages)],
        ["KV cache of the rollouts", *(stage.cache / GIB for stage in stages)],
        ["working space of the rollouts", *(stage.rollout_working / GIB for stage in stages)],
        ["peak while rolling out", *(stage.rollout / GIB for stage in stages)],
        ["peak while updating", *(stage.update / GIB for stage in stages)],
    ]
    needed, has = plan.needed_bytes / GIB, machine.gpu.memory_bytes / GIB
    verdict = "fits" if plan.does_fit else "DOES NOT FIT"
    reserved = assumptions.reserved_bytes / GIB
    line = (
        f"fullest rank, with {assumptions.fragmentation:.0%} fragmentation and {reserved:.1f} GiB reserved: "
        f"{needed:.1f} of {has:.1f} GiB: {verdict}"
    )
    columns = ["GiB a rank", *(f"stage {stage.stage}" for stage in stages)]
    return Table("Memory (calculated)", (line,), columns, rows)


def traffic_table(run: PlannedRun, layout: Layout, machine: Machine, assumptions: Assumptions) -> Table:
    """Collectives of a step on the first and on the last stage's rank."""
    stages = sorted({0, layout.pipeline - 1})
    found: dict[tuple[str, ...], list[object]] = {}
    for index, stage in enumerate(stages):
        for part in step_traffic(run, layout, stage):
            key = (part.phase, part.collective, f"{part.group.name} ({part.group.size})", part.what)
            row = found.setdefault(key, [*key, *([None] * 3 * len(stages))])
            _add(row, 4 + 3 * index, part, machine, assumptions)
    columns = ["phase", "collective", "group (ranks)", "what"]
    for stage in stages:
        columns += [f"stage {stage}: calls", "MiB in", "est. ms"]
    return Table("Communication of one rank in a step (calculated; times estimated)", (), columns, list(found.values()))


def _add(row: list[Any], column: int, part: Traffic, machine: Machine, assumptions: Assumptions) -> None:
    ms = 1000 * part.seconds(machine, assumptions.link_efficiency, assumptions.collective_latency_s)
    for offset, value in enumerate((round(part.calls), part.input_bytes / MIB, ms)):
        row[column + offset] = value if row[column + offset] is None else row[column + offset] + value


def time_table(plan: PlannedLayout, machine: Machine, assumptions: Assumptions) -> Table:
    """The estimate and what it rests on."""
    time = plan.time
    used = time.flops / time.total_s / machine.gpu.dense_bf16_flops
    rows = [
        ["rollout", time.rollout_s],
        ["reference", time.reference_s],
        ["update", time.update_s],
        ["  of which pipeline bubble", time.bubble_s],
        ["gradients and optimizer", time.gradients_s],
        ["step", time.total_s],
    ]
    lines = [f"an estimate, not a measurement; it amounts to {used:.1%} of the peak FLOP/s.  Assumed:"]
    lines += [f"  {name} = {value:g}" for name, value in asdict(assumptions).items()]
    return Table("Time of a step (estimated)", lines, ["phase", "s"], rows)


def layouts_table(result: SearchResult, num_shown: int) -> Table:
    """Those that fit, fastest first."""
    rows = [_layout_row(plan) for plan in result.fitting[:num_shown]]
    title = f"Layouts that fit: {len(result.fitting)}, fastest estimate first"
    return Table(title, (), _LAYOUT_COLUMNS, rows)


def refused_table(result: SearchResult, num_shown: int) -> Table:
    """Those too large, smallest first, and the illegal ones by reason."""
    lines = []
    for plan in result.too_large[:num_shown]:
        lines.append(f"too large: {plan.layout}: {plan.needed_bytes / GIB:.1f} GiB")
    for reason, layouts in sorted(result.illegal.items(), key=lambda item: -len(item[1])):
        layout, error = layouts[0]
        lines.append(f"{len(layouts)} layouts: {reason}")
        lines.append(f"    such as {layout.cuts}: {error.expected or error.remedy}")
    num_illegal = sum(map(len, result.illegal.values()))
    return Table(f"Layouts that do not: {len(result.too_large)} too large, {num_illegal} illegal", lines)


_LAYOUT_COLUMNS = ("tensor", "pipeline", "expert", "expert_tensor", "data", "recompute", "GiB", "est. s a step")


def _layout_row(plan: PlannedLayout) -> list[object]:
    layout = plan.layout
    sizes = [layout.tensor, layout.pipeline, layout.expert, layout.expert_tensor, layout.data]
    return [*sizes, layout.parallel.recompute, plan.needed_bytes / GIB, plan.time.total_s]


def plan_as_values(plan: PlannedLayout, run: PlannedRun) -> dict[str, Any]:
    """For `--json`: bytes and seconds."""
    return {
        "layout": plan.layout.parallel.model_dump() | {"data": plan.layout.data, "world_size": plan.layout.world_size},
        "needed_bytes": plan.needed_bytes,
        "does_fit": plan.does_fit,
        "estimated_s": asdict(plan.time) | {"total_s": plan.time.total_s},
        "stages": [_stage_values(stage) for stage in plan.stages],
        "traffic": {
            stage.stage: [_traffic_values(part) for part in step_traffic(run, plan.layout, stage.stage)]
            for stage in plan.stages
        },
    }


def _stage_values(stage: StageMemory) -> Mapping[str, Any]:
    values = {**asdict(stage), "activations": dict(stage.activations)}
    return values | {"rollout_peak": stage.rollout, "update_peak": stage.update}


def _traffic_values(part: Traffic) -> Mapping[str, Any]:
    group = {"group": part.group.name, "group_size": part.group.size}
    return {name: value for name, value in asdict(part).items() if name != "group"} | group
