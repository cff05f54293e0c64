"""A run from its first step to its end, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_moe_grpo.mcore.parallel import stop_parallel
from megatron_moe_grpo.rollout.interruption import StopRequested
from megatron_moe_grpo.training.run import Run
from megatron_moe_grpo.training.run_status import EXIT_CODES, State, write_status


@contextmanager
def running(run: Run, status_file: Path | None = None) -> Iterator[None]:
    """Around the steps: stop signals, hangs, the last save, and closing what the run has open.

    Args:
        status_file: where the run says how far it is saved, and how it ended.
    Raises:
        SystemExit: the run was asked to stop, and has saved; its code says that it can go on.
    """
    state: State = "finished"
    run.watch.on_hang = lambda reason: write_status(status_file, "hung", run.steps_done, reason)
    if run.layout.is_main:
        write_status(status_file, "running", run.first_step)
        run.saver.on_saved = lambda step: write_status(status_file, "running", step, has_saved=True)
    _say_restart(run)
    with run.stop.handled(), run.watch.watching():
        try:
            yield
        except StopRequested:
            state = "stopped"
            run.progress.say(f"asked to stop by {run.stop.name or 'a signal to another rank'}: saving")
            run.save(run.steps_done)
        # A checkpoint that is being written beside training.
        run.saver.wait()
    run.progress.close()
    run.log.finish()
    if run.layout.is_main:
        write_status(status_file, state, run.steps_done, run.stop.name)
    # Whoever ends first with a code that is not 0 has the others killed, by torchrun and by srun.
    dist.barrier()
    stop_parallel()
    if state == "stopped":
        raise SystemExit(EXIT_CODES[state])


def _say_restart(run: Run) -> None:
    restarts = os.environ.get("SLURM_RESTART_COUNT")
    if restarts is not None:
        run.progress.say(f"restart {restarts} of this Slurm job, {run.steps_done} steps done")
