"""A command in a process group of its own: nothing that it starts outlives it, and its CPU time is counted."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 10.0
"""Between asking a group to end and killing it."""
POLL_S = 0.05


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it took."""

    exit_code: int
    """Negative: the signal that ended it."""
    cpu_s: float
    """User and system time of the process and of every child that it waited for."""
    wall_s: float


class GroupedProcess:
    """One running command, its output in a file."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], kept_open: Sequence[int] = ()
    ) -> None:
        """Starts it.  `kept_open`: file descriptors that it holds until it ends, such as a lock."""
        self._started_s = time.monotonic()
        self._ended: Ended | None = None
        with log.open("ab") as file:
            # A session of its own is a process group of its own, and one that the terminal's Ctrl-C does not reach:
            # whoever started the experiment stops it, and the experiment stops its groups.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=kept_open,
            )

    @property
    def pid(self) -> int:
        """Also the number of its group."""
        return self._process.pid

    def poll(self) -> Ended | None:
        """None while it runs; once it has ended, what is left of its group is killed."""
        if self._ended is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            # Not reaped yet, so the number of the group is still its own.
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._ended = Ended(
                self._process.returncode, usage.ru_utime + usage.ru_stime, time.monotonic() - self._started_s
            )
        return self._ended

    def ask_to_end(self) -> None:
        """SIGTERM to the whole group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


def end_all(processes: Sequence[GroupedProcess], patience_s: float = PATIENCE_S) -> None:
    """Ends every group: asks, waits a little, kills; returns when none is left."""
    for process in processes:
        process.ask_to_end()
    deadline_s = time.monotonic() + patience_s
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline_s:
            for process in processes:
                process.kill()
        time.sleep(POLL_S)
