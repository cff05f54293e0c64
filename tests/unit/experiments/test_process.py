"""Nothing that a command starts outlives it, whether it ends, is asked to end, or will not."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_moe_grpo.experiments.process import Ended, GroupedProcess, end_all

# A child of the child writes its number; the parent waits for it, or ends before it.
GRANDCHILD = "sleep 60 & echo $! > {pid}; "
DEADLINE_S = 20


def shell(script: str, folder: Path, **arguments: object) -> GroupedProcess:
    text = script.format(pid=folder / "pid")
    return GroupedProcess(["bash", "-c", text], folder / "log", dict(os.environ), **arguments)


def wait_until(is_reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_reached():
        assert time.monotonic() < deadline_s, "never came so far"
        time.sleep(0.01)


def ended(process: GroupedProcess) -> Ended:
    wait_until(lambda: process.poll() is not None)
    return process.poll()


def grandchild(folder: Path) -> int:
    wait_until(lambda: (folder / "pid").is_file() and (folder / "pid").read_text().endswith("\n"))
    return int((folder / "pid").read_text())


def is_gone(pid: int) -> bool:
    """Also as a zombie that its new parent has not looked at yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_poll_tells_exit_code_and_cpu_time(tmp_path: Path) -> None:
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('said')\nsys.exit(3)"
    found = ended(GroupedProcess([sys.executable, "-c", code], tmp_path / "log", dict(os.environ)))
    assert found.exit_code == 3
    assert 0.3 <= found.cpu_s < 3
    assert found.wall_s >= 0.3
    assert (tmp_path / "log").read_text() == "said\n"


def test_poll_kills_what_a_command_left_behind(tmp_path: Path) -> None:
    process = shell(GRANDCHILD, tmp_path)
    assert ended(process).exit_code == 0
    wait_until(lambda: is_gone(grandchild(tmp_path)))


@pytest.mark.parametrize(("prologue", "expected"), [("", -15), ("trap '' TERM; ", -9)])
def test_end_all_ends_the_whole_group(prologue: str, expected: int, tmp_path: Path) -> None:
    process = shell(prologue + GRANDCHILD + "wait; wait", tmp_path)
    pid = grandchild(tmp_path)
    end_all([process], patience_s=0.5)
    assert process.poll().exit_code == expected
    wait_until(lambda: is_gone(pid))


def test_a_group_is_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    process = shell(GRANDCHILD + "wait", tmp_path)
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid != os.getsid(0)
    end_all([process])


def test_ended_processes_are_left_alone(tmp_path: Path) -> None:
    process = shell("true", tmp_path)
    first = ended(process)
    # The number may be somebody else's by now.
    process.ask_to_end()
    process.kill()
    assert process.poll() == first
