"""Ends a run in which nothing moves any more, with the stacks of its processes: a stuck collective waits for ever.

Each rank watches itself.  A rank that is stuck in a collective still runs its other threads; the one it waits for may
be stopped altogether, and is asked from outside.  All ranks of a node end together, because torchrun gives a stopped
worker 30 seconds before it kills it.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from megatron_moe_grpo.training.run_status import EXIT_CODES

ASK_FOR_STACKS = signal.SIGUSR2
# For the other processes to write their stacks: file systems of clusters are slow.
WRITING_S = 1.0
POLLS_A_TIMEOUT, LONGEST_POLL_S = 20, 10.0


class HangWatch:
    """A thread that hears of each phase and each token, and acts when it has heard of nothing for too long."""

    def __init__(self, timeout_s: float, stacks: Path, rank: int):
        """
        Args:
            stacks: folder for the stacks, one file a rank.
        """
        self._timeout_s, self._stacks, self._rank = timeout_s, stacks, rank
        self.on_hang: Callable[[str], None] = lambda reason: None
        """Told the reason before the process ends."""
        self._place, self._beat_s = "start", time.monotonic()
        self._is_over = threading.Event()

    def beat(self, place: str | None = None) -> None:
        """Says that the run moves on, and into which phase if it is a new one."""
        self._place = place or self._place
        self._beat_s = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, a hang ends this process and the others of its job on this machine."""
        self._stacks.mkdir(exist_ok=True)
        path = self._stacks / f"rank_{self._rank}.txt"
        with path.open("w", encoding="utf-8") as file:
            faulthandler.register(ASK_FOR_STACKS, file=file, all_threads=True)
            self.beat()
            thread = threading.Thread(target=self._watch, args=(file.fileno(),), name="hang watch", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._is_over.set()
                thread.join()
                faulthandler.unregister(ASK_FOR_STACKS)
        # Reached without a hang only.
        path.unlink()
        with suppress(OSError):
            self._stacks.rmdir()

    def _watch(self, stacks: int) -> None:
        poll_s = min(self._timeout_s / POLLS_A_TIMEOUT, LONGEST_POLL_S)
        while not self._is_over.wait(poll_s):
            still_s = time.monotonic() - self._beat_s
            if still_s > self._timeout_s:
                self._end(stacks, still_s)

    def _end(self, stacks: int, still_s: float) -> None:
        reason = f"rank {self._rank} has not moved on in phase {self._place!r} for {still_s:.1f} s"
        print(f"{reason}; stacks of all ranks: {self._stacks}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(stacks, all_threads=True)
        siblings = _siblings()
        for process in siblings:
            _send(process, signal.SIGCONT)
            _send(process, ASK_FOR_STACKS)
        time.sleep(WRITING_S)
        self.on_hang(reason)
        for process in siblings:
            _send(process, signal.SIGKILL)
        os._exit(EXIT_CODES["hung"])


def _siblings() -> list[psutil.Process]:
    """The other processes that the same torchrun started on this machine; none without torchrun."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return []
    found = []
    for process in psutil.Process().parent().children():
        try:
            if process.pid != os.getpid() and process.environ().get("TORCHELASTIC_RUN_ID") == run_id:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
