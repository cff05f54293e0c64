"""`logging.profile_steps`: what a few steps spend their time on, as a trace for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Iterator

import torch

from megatron_moe_grpo.training.run import Run


def profiled_steps(run: Run) -> Iterator[int]:
    """`run.steps()`, with torch.profiler on the main rank over the steps that the settings name, counted from 1.

    The trace is `profile/steps_FIRST_to_LAST.json` in the run folder, written after the last of them, or after the
    run's last; a run that ends early leaves none.  The run's phases are ranges in it.
    """
    if run.config.logging.profile_steps is None or not run.layout.is_main:
        yield from run.steps()
        return
    first, last = run.config.logging.profile_steps
    started: torch.profiler.profile | None = None
    first_seen = done = 0
    for step in run.steps():
        done = step + 1
        if first <= done <= last and started is None:
            first_seen, started = done, torch.profiler.profile()
            started.start()
        yield step
        if done == last and started is not None:
            _write_trace(run, started, first_seen, done)
            started = None
    if started is not None:
        _write_trace(run, started, first_seen, done)


def _write_trace(run: Run, profiler: torch.profiler.profile, first: int, last: int) -> None:
    profiler.stop()
    run.folder.profile.mkdir(exist_ok=True)
    path = run.folder.profile / f"steps_{first}_to_{last}.json"
    profiler.export_chrome_trace(str(path))
    run.progress.say(f"profile of steps {first} to {last}: {path}")
