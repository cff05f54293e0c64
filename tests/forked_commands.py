"""Our commands in processes of their own, forked from one that has imported everything: a start costs no import.

What a forked process runs is `python -m megatron_moe_grpo ARGUMENTS` from its first line to its exit code.  Two of them
with the environment that torchrun sets are two ranks.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120
"""A hang is a failure, not a wait: no command of the tests takes more than 5 s on two idle cores."""
POLL_S = 0.001
PRELOADED = ["megatron_moe_grpo.training.train_grpo", "megatron_moe_grpo.training.train_sft"]


@dataclass(frozen=True)
class Finished:
    """One rank's exit code (-9: killed) and everything it printed."""

    exit_code: int
    output: str


class Command(AbstractContextManager["Command"]):
    """A command on one or more ranks, running."""

    def __init__(self, arguments: Sequence[object], log: Path, num_ranks: int = 1) -> None:
        """`arguments` as in a shell; a first one that ends in .py is a script of repository.  `log`: a new folder."""
        log.mkdir(parents=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = _free_port()
        self._logs = [log / f"rank_{rank}.txt" for rank in range(num_ranks)]
        self._ranks: list[BaseProcess] = [
            context.Process(target=_run, args=([*map(str, arguments)], _environment(rank, num_ranks, port), path))
            for rank, path in enumerate(self._logs)
        ]
        for process in self._ranks:
            process.start()

    def kill_when(self, is_reached: Callable[[], bool]) -> None:
        """SIGKILL to every rank, the last one first, as soon as `is_reached`; nothing that they started may live on."""
        self._wait_until(is_reached)
        children = [child for process in self._ranks for child in psutil.Process(process.pid).children(recursive=True)]
        for process in reversed(self._ranks):
            os.kill(process.pid, signal.SIGKILL)
        assert [finished.exit_code for finished in self.finish()] == [-signal.SIGKILL] * len(self._ranks)
        _, left_behind = psutil.wait_procs(children, timeout=TIMEOUT_S)
        assert not left_behind, f"outlive the run that was killed: {left_behind}"

    def send_when(self, is_reached: Callable[[], bool], number: signal.Signals, rank: int = 0) -> None:
        """A signal to one rank as soon as `is_reached`."""
        self._wait_until(is_reached)
        os.kill(self._ranks[rank].pid, number)

    def finish(self) -> list[Finished]:
        """Waits for the end of every rank."""
        deadline_s = time.monotonic() + TIMEOUT_S
        for process in self._ranks:
            process.join(max(0.0, deadline_s - time.monotonic()))
        assert not any(process.is_alive() for process in self._ranks), f"hangs:\n{self._outputs()}"
        return [
            Finished(process.exitcode, output) for process, output in zip(self._ranks, self._outputs(), strict=True)
        ]

    def __exit__(self, *exception: object) -> None:
        for process in self._ranks:
            process.kill()
            process.join()

    def _wait_until(self, is_reached: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not is_reached():
            assert all(process.is_alive() for process in self._ranks), f"ended too early:\n{self.finish()}"
            assert time.monotonic() < deadline_s, f"never came so far:\n{self._outputs()}"
            time.sleep(POLL_S)

    def _outputs(self) -> list[str]:
        return [path.read_text(encoding="utf-8") if path.is_file() else "" for path in self._logs]


def run_command(arguments: Sequence[object], log: Path, num_ranks: int = 1) -> list[Finished]:
    """Starts a command and waits for its end."""
    with Command(arguments, log, num_ranks) as command:
        return command.finish()


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes; nothing for a process alone."""
    if num_ranks == 1:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "localhost"} | {name: str(value) for name, value in ranks.items()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _run(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """The forked process: one rank of the command, its output in a file."""
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    is_script = arguments[0].endswith(".py")
    sys.argv = [str(ROOT / arguments[0]), *arguments[1:]] if is_script else ["megatron_moe_grpo", *arguments]
    if is_script:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module("megatron_moe_grpo", run_name="__main__", alter_sys=True)
