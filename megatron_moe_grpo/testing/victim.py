"""A run under attack: started, watched and ended from outside, as an operator or a failing machine would."""

import json
import resource
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from megatron_moe_grpo.testing.tiny_job import TinyJob, environment

POLL_S = 0.002
# In the environment of every process that one start of a job leads to.
MARK = "MOE_GRPO_CHAOS"
# Start-up of several processes on a loaded machine, or a hang that is found.
PATIENCE_S = 300.0


class Victim:
    """One start of a job's command, until its processes are gone."""

    def __init__(self, job: TinyJob, log: Path, max_file_bytes: int | None = None):
        """
        Args:
            max_file_bytes: no process may write a longer file, as on a disk that is full.
        """

        def limit() -> None:
            if max_file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

        self.job, self._log = job, log
        self._steps_at_start = steps_done(job.run)
        self._started_s, self.seconds_to_first_step = time.monotonic(), None
        self._file = log.open("wb")
        # torchrun gives each worker a session of its own, and one that outlives it has another parent.
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            job.command,
            env=environment() | {MARK: self._mark},
            stdout=self._file,
            stderr=self._file,
            preexec_fn=limit,
        )

    def wait_until(self, is_reached: Callable[[], bool]) -> bool:
        """True when it is; False if the run has ended before."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_reached():
            self._look()
            if self._process.poll() is not None:
                return False
            self._refuse_late(deadline_s)
            time.sleep(POLL_S)
        self._look()
        return True

    def wait(self) -> int:
        """The exit code of the command, once it has ended and nothing that it started lives on."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._process.poll() is None or self._members():
            self._look()
            self._refuse_late(deadline_s)
            time.sleep(POLL_S)
        self._file.close()
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL to every process."""
        for process in [psutil.Process(self._process.pid), *self._members()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def workers(self) -> list[psutil.Process]:
        """The training processes."""
        launcher = psutil.Process(self._process.pid)
        return launcher.children() if self.job.num_processes > 1 else [launcher]

    def output(self) -> str:
        """What the run has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def status(self) -> str:
        """The state that the run wrote; empty: none."""
        file = self.job.status
        return json.loads(file.read_text(encoding="utf-8"))["state"] if file.is_file() else ""

    def _members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_alive and process.pid != self._process.pid and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def _look(self) -> None:
        if self.seconds_to_first_step is None and steps_done(self.job.run) > self._steps_at_start:
            self.seconds_to_first_step = time.monotonic() - self._started_s

    def _refuse_late(self, deadline_s: float) -> None:
        if time.monotonic() > deadline_s:
            self.kill()
            raise TimeoutError(
                f"nothing happened for {PATIENCE_S:.0f} s; the run's last words:\n{self.output()[-3000:]}"
            )


def steps_done(run: Path) -> int:
    """Steps in metrics.jsonl; a line that is being written does not count."""
    path = run / "metrics.jsonl"
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.is_file() else 0


def checkpoints(run: Path) -> list[Path]:
    """Those with a name, the newest last."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if not path.suffix)


def is_saving(run: Path) -> bool:
    """True while a checkpoint is written."""
    return any((run / "checkpoints").glob("*.unfinished"))
