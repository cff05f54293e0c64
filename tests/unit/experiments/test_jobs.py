"""What is done is not done again, what fails stops nobody else, and what is stopped leaves no process."""

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_moe_grpo.experiments.jobs import Job, JobEvent, Step, beside, run_jobs

STAMP = {"commit": "abc"}


class Events(list[tuple[str, str]]):
    """(event, title) in the order in which they came."""

    def tell(self, event: JobEvent, job: Job) -> None:
        self.append((event, job.title))


def job(folder: Path, *scripts: str, after: Job | None = None) -> Job:
    """Step i makes FOLDER/i if its script does; every script notes its turn in FOLDER/../turns."""
    steps = [
        Step(f"step {index}", ("bash", "-c", f"echo {folder.name}{index} >> turns; {script}"), folder / str(index))
        for index, script in enumerate(scripts)
    ]
    return Job(folder.name, folder, tuple(steps), after)


def makes(folder: Path, index: int) -> str:
    return f"mkdir -p {folder}; touch {folder / str(index)}"


def attempts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in beside(folder, ".attempts.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "turns").touch()
    return tmp_path / "turns"


def test_run_jobs_goes_on_at_the_first_step_that_is_not_done(tmp_path: Path, turns: Path) -> None:
    a = tmp_path / "a"
    a.mkdir()
    (a / "0").touch()
    events = Events()
    run_jobs([job(a, "exit 1", makes(a, 1), makes(a, 2))], 1, STAMP, events.tell)
    assert turns.read_text().split() == ["a1", "a2"]
    assert events == [("starts", "a"), ("done", "a")]
    run_jobs([job(a, "exit 1", makes(a, 1), makes(a, 2))], 1, STAMP, events.tell)
    assert turns.read_text().split() == ["a1", "a2"]
    assert events[2:] == [("done", "a")]
    assert [(line["step"], line["exit_code"], line["commit"]) for line in attempts(a)] == [
        ("step 1", 0, "abc"), ("step 2", 0, "abc"),
    ]  # fmt: skip


def test_run_jobs_reports_a_failure_and_goes_on_with_the_others(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    bad = job(a, "echo first; echo last words; exit 7", makes(a, 1))
    idle = job(b, "true")
    good = job(c, makes(c, 0))
    events = Events()
    run_jobs([bad, idle, good], 1, STAMP, events.tell)
    assert bad.failure.startswith("step 0: exit code 7") and bad.failure.endswith("| last words")
    assert "ended well without making" in idle.failure
    assert good.failure is None
    assert ("failed", "a") in events and ("failed", "b") in events and ("done", "c") in events
    assert not (a / "1").exists()


def test_what_a_failed_command_made_by_half_is_not_taken_for_done(tmp_path: Path, turns: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    folder = job(a, f"mkdir -p {a / '0'}; touch {a / '0' / 'half'}; exit 1")
    file = job(b, f"{makes(b, 0)}; kill -9 $$")
    run_jobs([folder, file], 2, STAMP, Events().tell)
    assert folder.failure is not None and file.failure is not None
    assert not (a / "0").exists() and not (b / "0").exists()
    run_jobs([job(b, makes(b, 0), makes(b, 1))], 1, STAMP, Events().tell)
    assert turns.read_text().split()[-2:] == ["b0", "b1"]


def test_run_jobs_lets_a_job_wait_for_its_start(tmp_path: Path, turns: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    start = job(c, f"sleep 0.2; {makes(c, 0)}", makes(c, 1))
    run_jobs([job(a, makes(a, 0), after=start), start, job(b, makes(b, 0))], 3, STAMP, Events().tell)
    order = turns.read_text().split()
    assert order.index("a0") > order.index("c1")
    assert order.index("b0") < order.index("c1")


def test_run_jobs_does_not_run_what_stands_on_a_failure(tmp_path: Path, turns: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    start = job(a, "exit 1")
    dependent = job(b, makes(b, 0), after=start)
    run_jobs([start, dependent], 2, STAMP, Events().tell)
    assert turns.read_text().split() == ["a0"]
    assert dependent.failure == "not run, because this failed: a"


@pytest.mark.parametrize("num_at_once", [1, 2])
def test_run_jobs_runs_so_many_at_once(num_at_once: int, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    # Each notes how many run while it does.
    script = "touch running.$$; ls running.* | wc -l >> counts; sleep 0.2; rm running.$$; "
    run_jobs([job(folder, script + makes(folder, 0)) for folder in folders], num_at_once, STAMP, Events().tell)
    assert max(map(int, (tmp_path / "counts").read_text().split())) == num_at_once


def test_run_jobs_waits_for_another_experiment_in_the_folder(tmp_path: Path) -> None:
    a = tmp_path / "a"
    other = os.open(beside(a, ".lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    events = Events()

    def tell(event: JobEvent, one: Job) -> None:
        events.tell(event, one)
        if event == "waits":
            # The other one finishes the job itself.
            a.mkdir()
            (a / "0").touch()
            os.close(other)

    run_jobs([job(a, "exit 1")], 1, STAMP, tell)
    assert events == [("waits", "a"), ("done", "a")]


def test_a_process_holds_its_folder_even_when_the_experiment_is_gone(tmp_path: Path) -> None:
    a = tmp_path / "a"
    tried = job(a, f"ls -l /proc/$$/fd | grep -q a.lock && {makes(a, 0)}")
    run_jobs([tried], 1, STAMP, Events().tell)
    assert tried.failure is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_experiment_ends_its_groups_and_keeps_their_cost(number: int, tmp_path: Path, turns: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"

    def stop() -> None:
        while len(turns.read_text().split()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(number)
    sleeping = [job(a, "sleep 60 & wait"), job(b, "sleep 60 & wait"), job(tmp_path / "c", "sleep 60")]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(sleeping, 2, STAMP, Events().tell)
    assert [attempts(folder)[0]["exit_code"] for folder in (a, b)] == [-signal.SIGTERM] * 2
    assert not (tmp_path / "c.attempts.jsonl").exists()
    assert signal.getsignal(number) == before
    # The folders are free again.
    run_jobs([job(a, makes(a, 0))], 1, STAMP, Events().tell)
