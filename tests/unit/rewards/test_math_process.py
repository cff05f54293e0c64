import os
import signal
import subprocess
import threading
import time

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.errors import RewardError
from megatron_moe_grpo.rewards import math_process
from megatron_moe_grpo.rewards.math_answer import MathAnswer
from megatron_moe_grpo.rewards.math_process import MathProcess

ENDLESS = [
    "9**9**9**9",
    "$9^{9^{9^{9}}}$",
    "$\\frac{5^{5^{5^{5^5}}} - 5}{16}$",  # Math-Verify issue 65
    "$30!!!!!!!!$",
]


@pytest.fixture(scope="module")
def patient() -> MathProcess:
    return MathProcess(30.0)


@pytest.mark.parametrize("formula", ENDLESS)
def test_math_process_ends_what_never_ends(formula: str) -> None:
    process = MathProcess(0.2)
    process._running_process()
    start_s = time.perf_counter()
    assert not process.is_equal_anywhere(formula, "5")
    assert time.perf_counter() - start_s < 10.0  # measured 0.21 s, and 0.9 s for the next one's new worker
    assert process._process.returncode == -signal.SIGKILL, "the formula did not take long: it proves nothing"
    process._timeout_s = 30.0  # a busy machine may be slow
    assert process.is_equal("\\sqrt{4}", "2"), "the next one is answered again"


def test_math_process_works_in_a_thread(patient: MathProcess) -> None:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(patient.is_equal("\\sqrt{4}", "2")))
    thread.start()
    thread.join(60)
    assert answers == [True]


def test_math_process_is_not_shared_with_a_forked_copy(patient: MathProcess) -> None:
    assert patient.is_equal("\\sqrt{4}", "2")
    child = os.fork()
    if child == 0:
        os._exit(0 if patient.is_equal("\\sqrt{9}", "3") and not patient.is_equal("1", "2") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert patient.is_equal("\\sqrt{4}", "2") and not patient.is_equal("1", "2")


def test_math_process_replaces_a_dead_worker(patient: MathProcess) -> None:
    assert patient.is_equal("\\sqrt{4}", "2")
    patient._process.kill()
    patient._process.wait()
    assert patient.is_equal("\\sqrt{4}", "2")


def test_math_process_leaves_nothing_behind() -> None:
    process = MathProcess(30.0)
    process.is_equal("1", "2")
    worker = process._process
    del process
    assert worker.poll() is not None
    assert worker.stdin.closed and worker.stdout.closed


def test_math_worker_ends_with_its_parent() -> None:
    # Standard input ends when the parent dies, however it dies.
    worker = math_process._started_process()
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0
    worker.stdout.close()


def test_math_process_names_a_worker_that_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RewardError, match="does not start"):
        math_process._started_process("megatron_moe_grpo.no_such_worker")
    assert "no_such_worker" in capfd.readouterr().err


def test_math_process_costs_nothing_until_the_first_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert MathAnswer(RewardConfig())("140 degrees", "140°", ()) == 1.0
