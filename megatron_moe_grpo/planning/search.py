"""All layouts of a world: which are legal, which fit, and which may be fastest."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.hardware import Machine
from megatron_moe_grpo.planning.layout import Layout, candidate_layouts, why_illegal
from megatron_moe_grpo.planning.memory import PlannedRun, StageMemory, fits, needed_bytes, stage_memory
from megatron_moe_grpo.planning.step_time import StepTime, step_time

RECOMPUTE_MODES = ("none", "moe", "full")


@dataclass(frozen=True)
class PlannedLayout:
    """A legal layout with what it needs."""

    layout: Layout
    stages: tuple[StageMemory, ...]
    """One for each kind of pipeline stage."""
    needed_bytes: float
    """Of the fullest rank, reserve and fragmentation included."""
    does_fit: bool
    time: StepTime


@dataclass
class SearchResult:
    """What became of every candidate."""

    fitting: list[PlannedLayout] = field(default_factory=list)
    """Fastest first; of each layout the fastest recompute mode that fits."""
    too_large: list[PlannedLayout] = field(default_factory=list)
    """Smallest first, in the recompute mode that needs least."""
    illegal: dict[str, list[tuple[Layout, ConfigError]]] = field(default_factory=lambda: defaultdict(list))
    """By reason."""


def plan_layout(run: PlannedRun, layout: Layout, machine: Machine, assumptions: Assumptions) -> PlannedLayout:
    """Memory and time of a legal layout."""
    stages = tuple(stage_memory(run, layout, stage, assumptions) for stage in run.unlike_stages(layout))
    peak = max(stage.peak for stage in stages)
    return PlannedLayout(
        layout,
        stages,
        needed_bytes(peak, assumptions),
        fits(peak, machine.gpu.memory_bytes, assumptions),
        step_time(run, layout, machine, assumptions),
    )


def search_layouts(run: PlannedRun, world_size: int, machine: Machine, assumptions: Assumptions) -> SearchResult:
    """Tries every way to cut `world_size` ranks; illegal ones keep the reason that training would give."""
    sizes, result = run.architecture.text, SearchResult()
    modes = RECOMPUTE_MODES if sizes.num_experts else ("none", "full")
    for layout in candidate_layouts(run.config, sizes, world_size):
        error = why_illegal(run.config, sizes, layout)
        if error is not None:
            result.illegal[_reason(error)].append((layout, error))
            continue
        plans = [plan_layout(run, _with_recompute(layout, mode), machine, assumptions) for mode in modes]
        fitting = [plan for plan in plans if plan.does_fit]
        if fitting:
            result.fitting.append(min(fitting, key=lambda plan: plan.time.total_s))
        else:
            result.too_large.append(min(plans, key=lambda plan: plan.needed_bytes))
    result.fitting.sort(key=lambda plan: plan.time.total_s)
    result.too_large.sort(key=lambda plan: plan.needed_bytes)
    return result


def _with_recompute(layout: Layout, mode: str) -> Layout:
    return Layout(layout.parallel.model_copy(update={"recompute": mode}), layout.world_size)


def _reason(error: ConfigError) -> str:
    """What went wrong, without the sizes that differ from layout to layout."""
    return re.sub(r"=\d+", "", error.what)
