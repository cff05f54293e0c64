"""A time limit on comparing formulas that no formula can outlast.

`9**9**9**9` sends Python's integer arithmetic into a loop that never looks at signals or threads (Math-Verify issue 65:
"forever hang" under its own alarm), and alarms work in a main thread only.  So the comparison is done by a child
process, which is killed when it is late and has a limit on its memory.  It costs nothing until the first formula.
"""

import json
import os
import select
import subprocess
import sys
import weakref
from pathlib import Path

from megatron_moe_grpo.errors import RewardError

PACKAGE_FOLDER = Path(__file__).resolve().parents[2]
WORKER = "megatron_moe_grpo.rewards.math_worker"
READY, RIGHT, WRONG = b"R", b"1", b"0"
STARTUP_S = 300.0
MAX_CHARS = 1000
"""Only the end of a longer text is read: Math-Verify prefers the last formula."""
MAX_REQUESTS = 2000
"""After so many a new worker takes over, because SymPy's caches grow."""


class MathProcess:
    """Compares formulas in one child process of its own, started at the first comparison and after each kill."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize | None = None
        self._owner = 0
        self._num_requests = 0

    def is_equal(self, answer: str, solution: str, tolerance: float = 0.0) -> bool:
        """Whether two LaTeX formulas, each from end to end, are equal; `tolerance` is relative, between values.

        Raises:
            RewardError: the child process cannot be started.
        """
        return self._ask(answer, solution, True, tolerance)

    def is_equal_anywhere(self, answer: str, solution: str) -> bool:
        """Equal texts, or the last formula or number in `answer` equals that in `solution`: R1-V's judgement of CLEVR
        and GEOQA (src/r1-v/src/open_r1/grpo.py).  Raises as `is_equal` does."""
        return answer == solution.strip() or self._ask(answer, solution, False, 0.0)

    def _ask(self, answer: str, solution: str, is_whole_answer: bool, tolerance: float) -> bool:
        request = {
            "answer": answer[-MAX_CHARS:],
            "solution": solution,
            "is_whole_answer": is_whole_answer,
            "tolerance": tolerance,
            "timeout_s": self._timeout_s,
        }
        process = self._running_process()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            reply = b""
        else:
            reply = _read_byte(process, self._timeout_s)
        self._num_requests += 1
        if reply not in (RIGHT, WRONG) or self._num_requests == MAX_REQUESTS:
            self._stop()
        return reply == RIGHT

    def _running_process(self) -> subprocess.Popen[bytes]:
        # A forked copy of this process must not share the child with it: two askers would read each other's replies.
        is_ours = self._process is not None and self._owner == os.getpid()
        if is_ours and self._process.poll() is None:
            return self._process
        if self._stop is not None:
            self._stop()
        self._process, self._owner, self._num_requests = _started_process(), os.getpid(), 0
        self._stop = weakref.finalize(self, _kill, self._process, self._owner)
        return self._process


def _started_process(module: str = WORKER) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGE_FOLDER)
    if _read_byte(process, STARTUP_S) != READY:
        _kill(process, os.getpid())
        raise RewardError(
            "the process that compares formulas does not start (its own error stands above)",
            got=f"exit code {process.returncode} of {' '.join(command)}",
            remedy="pip install -r requirements.txt -c constraints.txt",
        )
    return process


def _read_byte(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """One byte of its output; nothing if it is late or dead."""
    # Not select(): it refuses file numbers above 1023, which a trainer reaches.
    waiter = select.poll()
    waiter.register(process.stdout, select.POLLIN)
    return os.read(process.stdout.fileno(), 1) if waiter.poll(timeout_s * 1000) else b""


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
    process.stdin.close()
    process.stdout.close()
