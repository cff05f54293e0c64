"""One trainer a run folder, and none that is dead."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from forked_work import exit_code_of

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.run_lock import NAME, lock_run

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, child_seconds: float) -> tuple[multiprocessing.Process, int]:
    """A trainer that holds the lock, with a process of its own that may outlive it; its process and the child's id."""
    receiver, sender = FORK.Pipe(duplex=False)

    def trainer() -> None:
        lock_run(folder)
        child = os.fork()
        if child == 0:
            time.sleep(child_seconds)
            os._exit(0)
        sender.send(child)
        signal.pause()

    process = FORK.Process(target=trainer)
    process.start()
    return process, receiver.recv()


def test_a_second_trainer_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    first, _ = hold(tmp_path, child_seconds=0)

    def second() -> None:
        with pytest.raises(ConfigError, match=rf"another trainer works in(?s:.*)process {first.pid} on "):
            lock_run(tmp_path, wait_s=0.2)

    assert exit_code_of(second) == 0
    first.kill()
    first.join()


def test_a_killed_trainer_leaves_no_lock_though_its_child_lives(tmp_path: Path) -> None:
    first, child = hold(tmp_path, child_seconds=60)
    first.kill()
    first.join()
    os.kill(child, 0)
    assert exit_code_of(lambda: lock_run(tmp_path, wait_s=0)) == 0
    os.kill(child, signal.SIGKILL)


def test_a_trainer_that_is_about_to_go_is_waited_for(tmp_path: Path) -> None:
    first, _ = hold(tmp_path, child_seconds=0)
    second = FORK.Process(target=lock_run, args=(tmp_path,))
    second.start()
    time.sleep(0.3)
    assert second.is_alive()
    first.kill()
    first.join()
    second.join(10)
    assert second.exitcode == 0
    assert (tmp_path / NAME).read_text(encoding="utf-8").startswith(f"process {second.pid} on ")
