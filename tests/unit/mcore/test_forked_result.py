"""What a forked process found out comes back, and the process does not outlive the one that asked."""

import multiprocessing
import os
import time
from pathlib import Path

import psutil
import pytest

from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.forked_result import ForkedResult


def fail_as_users_do() -> None:
    raise CheckpointError("the disk is full", got="0 bytes", remedy="free some")


def fail_as_bugs_do() -> None:
    raise KeyError("forgotten")


def test_a_result_larger_than_a_pipe_comes_back() -> None:
    content = bytes(2**20)
    assert ForkedResult(lambda: content).take() == content


def test_the_work_sees_memory_as_it_was() -> None:
    numbers = [1]
    result = ForkedResult(lambda: list(numbers))
    numbers.append(2)
    assert result.take() == [1]


def test_errors_come_back() -> None:
    error = ForkedResult(fail_as_users_do).take()
    assert isinstance(error, CheckpointError)
    assert (error.what, error.got, error.remedy) == ("the disk is full", "0 bytes", "free some")
    error = ForkedResult(fail_as_bugs_do).take()
    assert isinstance(error, CheckpointError) and error.got == "KeyError: 'forgotten'"


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_without_a_word_is_an_error(code: int) -> None:
    error = ForkedResult(lambda: os._exit(code)).take()
    assert isinstance(error, CheckpointError) and error.got == f"exit code {code}"


def test_is_there_does_not_wait() -> None:
    result = ForkedResult(lambda: time.sleep(0.3))
    assert not result.is_there()
    result.take()


def test_the_process_dies_with_the_one_that_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def work() -> None:
        note.with_suffix(".new").write_text(str(os.getpid()))
        os.rename(note.with_suffix(".new"), note)
        time.sleep(60)

    def ask() -> None:
        ForkedResult(work).take()

    parent = multiprocessing.get_context("fork").Process(target=ask)
    parent.start()
    while not note.exists():
        time.sleep(0.01)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.join()
    child.wait(timeout=5)
