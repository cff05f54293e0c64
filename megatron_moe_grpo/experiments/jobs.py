"""Jobs: chains of commands whose outputs say whether they are done, several at once, each stoppable and resumable."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from megatron_moe_grpo.experiments.process import POLL_S, Ended, GroupedProcess, end_all
from megatron_moe_grpo.experiments.provenance import REPOSITORY

TAIL_LINES = 12
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
JobEvent = Literal["starts", "waits", "done", "failed"]


@dataclass(frozen=True)
class Step:
    """One command of a job."""

    name: str
    command: tuple[str, ...]
    output: Path
    """Exists when the step is done; what a failed or stopped command left of it is removed."""


@dataclass
class Job:
    """Steps that run one after the other.  Beside its folder lie FOLDER.log, FOLDER.attempts.jsonl and FOLDER.lock."""

    title: str
    folder: Path
    steps: tuple[Step, ...]
    after: "Job | None" = None
    """Runs first; this one does not run where that one failed."""
    failure: str | None = field(default=None, init=False)
    """Why it failed, None while it has not."""

    @property
    def log(self) -> Path:
        """Everything its commands printed."""
        return beside(self.folder, ".log")

    @property
    def next_step(self) -> Step | None:
        """The first that is not done."""
        return next((step for step in self.steps if not step.output.exists()), None)


class _Running:
    """A job with a process, and the lock that keeps a second experiment off its folder."""

    def __init__(self, job: Job, lock: int, stamp: Mapping[str, Any]) -> None:
        self.job, self._lock, self._stamp = job, lock, stamp
        self._start(job.next_step)

    def _start(self, step: Step) -> None:
        self._step = step
        # One thread a process: several of them lose more to each other's threads than they gain.
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self.process = GroupedProcess(step.command, self.job.log, environment, kept_open=[self._lock])

    def goes_on(self) -> bool:
        """False once the job has ended, one way or the other."""
        ended = self.process.poll()
        if ended is None:
            return True
        self.settle(ended)
        if ended.exit_code != 0 or not self._step.output.exists():
            self.job.failure = _failure(self._step, ended, self.job.log)
            return False
        following = self.job.next_step
        if following is not None:
            self._start(following)
        return following is not None

    def settle(self, ended: Ended) -> None:
        """Notes what this attempt took (a run costs the sum of its attempts), and removes what it made by half."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = {"step": self._step.name, **asdict(ended), "ended": now, **self._stamp}
        with beside(self.job.folder, ".attempts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if ended.exit_code != 0:
            # Not every command makes its output whole or not at all, and what exists would be taken for done.
            _remove(self._step.output)

    def close(self) -> None:
        """Gives the folder free."""
        os.close(self._lock)


class _Schedule:
    """Which jobs wait and which run."""

    def __init__(
        self,
        jobs: Sequence[Job],
        num_at_once: int,
        stamp: Mapping[str, Any],
        on_event: Callable[[JobEvent, Job], None],
    ) -> None:
        self._waiting, self._running = list(jobs), list[_Running]()
        self._num_at_once, self._stamp, self._on_event = num_at_once, stamp, on_event
        self._told: set[str] = set()

    @property
    def is_over(self) -> bool:
        return not self._waiting and not self._running

    def start_what_can(self) -> None:
        """Starts jobs while there is room; settles those that are done or can never run."""
        for job in list(self._waiting):
            if job.next_step is None:
                self._settle(job, "done")
            elif job.after is not None and job.after.failure is not None:
                job.failure = f"not run, because this failed: {job.after.title}"
                self._settle(job, "failed")
            elif len(self._running) < self._num_at_once and self._may_run(job):
                self._try_to_start(job)

    def collect_what_ended(self) -> None:
        """Lets every running job go on to its next command, and settles those that have none left."""
        for one in [one for one in self._running if not one.goes_on()]:
            self._running.remove(one)
            one.close()
            self._on_event("done" if one.job.failure is None else "failed", one.job)

    def end(self) -> None:
        """Ends what still runs; its attempts are recorded, so that their cost is not lost."""
        end_all([one.process for one in self._running])
        for one in self._running:
            one.settle(one.process.poll())
            one.close()

    def _settle(self, job: Job, event: JobEvent) -> None:
        self._waiting.remove(job)
        self._on_event(event, job)

    def _may_run(self, job: Job) -> bool:
        is_running = any(one.job is job.after for one in self._running)
        return job.after is None or (job.after.next_step is None and not is_running)

    def _try_to_start(self, job: Job) -> None:
        lock = _lock(job.folder)
        if lock is None:
            if job.title not in self._told:
                self._told.add(job.title)
                self._on_event("waits", job)
        elif job.next_step is None:
            # Another experiment finished it between the look and the lock; the next round settles it.
            os.close(lock)
        else:
            self._waiting.remove(job)
            self._running.append(_Running(job, lock, self._stamp))
            self._on_event("starts", job)


def run_jobs(
    jobs: Sequence[Job], num_at_once: int, stamp: Mapping[str, Any], on_event: Callable[[JobEvent, Job], None]
) -> None:
    """Runs what is not done, `num_at_once` jobs at a time; why a job failed is left in `Job.failure`.

    A job whose folder another experiment works in waits for it ("waits").  Ctrl-C and SIGTERM (as KeyboardInterrupt,
    too) leave this function only after every process group has ended.

    Args:
        stamp: goes into every line of the attempts, e.g. the commit.
        on_event: told of every change; "done" also where nothing was left to do.
    """
    schedule = _Schedule(jobs, num_at_once, stamp, on_event)
    # Noted and raised between two looks at the jobs: raised anywhere, a process could be started and not yet be known.
    stops: list[int] = []
    previous = {number: signal.signal(number, lambda got, _: stops.append(got)) for number in STOP_SIGNALS}
    try:
        while not schedule.is_over:
            if stops:
                raise KeyboardInterrupt
            schedule.start_what_can()
            schedule.collect_what_ended()
            time.sleep(POLL_S)
    finally:
        schedule.end()
        for number, handler in previous.items():
            signal.signal(number, handler)


def beside(folder: Path, ending: str) -> Path:
    """A file beside `folder`: a run folder takes no other things."""
    return folder.with_name(folder.name + ending)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds `folder` for this experiment and the processes that inherit it; None: taken."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(beside(folder, ".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _failure(step: Step, ended: Ended, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    how = f"exit code {ended.exit_code}" if ended.exit_code else f"it ended well without making {step.output}"
    return "\n".join([f"{step.name}: {how}; the end of {log}:", *(f"  | {line}" for line in lines)])
