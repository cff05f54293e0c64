"""The benchmark from first to last: our steps by phase, with and without a trace, then block by block beside TRL."""

import importlib.metadata
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.benchmark.grpo_step import GrpoProgram, phases
from megatron_moe_grpo.benchmark.measure import (
    NOTHING,
    PhaseClock,
    Span,
    Spread,
    paired_ratio,
    peak_memory_bytes,
    time_steps,
)
from megatron_moe_grpo.benchmark.shapes import write_model, write_pictures
from megatron_moe_grpo.benchmark.top_k_step import without_router_losses, without_trace
from megatron_moe_grpo.benchmark.trl_step import is_trl_installed, run_between_trl_steps
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel

NUM_WARMUP = 3
NUM_PICTURES = 16
MS = 1e3
Numbers = dict[str, Any]


def run_benchmark(num_blocks: int, steps_per_block: int) -> Numbers:
    """Everything that is measured, as JSON values; times in ms, ratios with their quartiles."""
    num_steps = num_blocks * steps_per_block
    with tempfile.TemporaryDirectory() as scratch:
        _say("making model and pictures")
        folder, pictures = write_model(Path(scratch)), write_pictures(Path(scratch), NUM_PICTURES)
        layout = start_parallel(ParallelConfig(), seed=0)
        try:
            ours = GrpoProgram(folder, pictures, layout, total_steps=100 * num_steps)
            numbers = {"machine": _machine(), "steps": num_steps, "blocks": num_blocks}
            numbers |= _overheads(ours, num_steps)
            numbers["phases"] = _phases(ours, num_steps)
            # Before TRL and what it imports come into the process.
            numbers["peak_memory_mib"] = peak_memory_bytes() / 2**20
            if is_trl_installed():
                numbers["trl"] = _beside_trl(ours, folder, pictures, num_blocks, steps_per_block)
            numbers["machine"]["load_average_at_end"] = os.getloadavg()[0]
        finally:
            stop_parallel()
    return numbers


def _overheads(ours: GrpoProgram, num_steps: int) -> Numbers:
    """Whole steps in turn: the method; without a trace; without anything of ours in the router."""

    def step_without_trace() -> None:
        with without_trace(ours.settings, ours.guidance):
            ours.step()

    def step_with_megatrons_router() -> None:
        with without_router_losses():
            ours.step()

    steps = (ours.step, step_without_trace, step_with_megatrons_router)
    _say("warm-up")
    time_steps(steps, NUM_WARMUP)
    _say(f"{num_steps} x 3 steps: with a trace, without, with Megatron's own router")
    whole, traceless, plain = time_steps(steps, num_steps)
    return {
        "step_ms": _both_clocks(whole),
        "trace_ratio": asdict(paired_ratio(whole, traceless)),
        "routing_ratio": asdict(paired_ratio(whole, plain)),
    }


def _phases(ours: GrpoProgram, num_steps: int) -> dict[str, dict[str, float]]:
    """Median ms of each phase of a step, CPU and wall."""
    _say(f"{num_steps} steps by phase")
    steps: list[dict[str, Span]] = []
    for _ in range(num_steps):
        clock = PhaseClock()
        with phases(ours, clock), clock.phase("everything else"):
            ours.step()
        steps.append(clock.spans)
    names = sorted({name for spans in steps for name in spans})
    return {name: _both_clocks([spans.get(name, NOTHING) for spans in steps]) for name in names}


def _beside_trl(
    ours: GrpoProgram, folder: Path, pictures: list[Path], num_blocks: int, steps_per_block: int
) -> Numbers:
    """Block for block in one process; ratios are ours over TRL's, from the medians of neighbouring blocks."""
    _say(f"{num_blocks} blocks of {steps_per_block} steps of TRL, ours between them")
    blocks: list[list[Span]] = []

    def our_block() -> None:
        blocks.append(time_steps([ours.step], steps_per_block)[0])

    theirs, clock = run_between_trl_steps(folder, pictures, NUM_WARMUP, num_blocks, steps_per_block, our_block)
    their_blocks = [theirs[start : start + steps_per_block] for start in range(0, len(theirs), steps_per_block)]
    # A block of ours stands on each side of a block of TRL's: their mean cancels a drift of the machine.
    ratios = [
        (_median_cpu(before) + _median_cpu(after)) / (2 * _median_cpu(block))
        for before, block, after in zip(blocks[:-1], their_blocks, blocks[1:], strict=True)
    ]
    return {
        "step_ms": _both_clocks(theirs),
        "our_step_ms": _both_clocks([span for block in blocks for span in block]),
        "generate_ms": clock.spans["generate"].cpu_s / len(theirs) * MS,
        "ratio": asdict(Spread.of(ratios)),
        "ratio_range": [min(ratios), max(ratios)],
        "version": importlib.metadata.version("trl"),
    }


def _both_clocks(spans: list[Span]) -> dict[str, float]:
    return {
        "cpu": Spread.of([span.cpu_s for span in spans]).median * MS,
        "wall": Spread.of([span.wall_s for span in spans]).median * MS,
    }


def _median_cpu(spans: list[Span]) -> float:
    return Spread.of([span.cpu_s for span in spans]).median


def _machine() -> Numbers:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "megatron-core", "transformers")}
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
        "versions": versions,
    }


def _say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)
