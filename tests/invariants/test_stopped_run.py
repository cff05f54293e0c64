"""A run that is asked to stop saves where it is, says so, and goes on later to the bytes of one that was not."""

import json
import signal
from pathlib import Path

import pytest
from forked_commands import Command, run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, tiny_start, write_recipe

STOPPED = 75
RUNS = [
    ("sft", 1, signal.SIGINT),
    ("moe_grpo", 1, signal.SIGUSR1),
    ("sft", 2, signal.SIGUSR1),
    ("moe_grpo", 2, signal.SIGTERM),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


@pytest.mark.parametrize(("method", "num_ranks", "number"), RUNS)
def test_a_stopped_run_continues_byte_for_byte(
    method: str, num_ranks: int, number: signal.Signals, start: TinyStart, tmp_path: Path
) -> None:
    status = tmp_path / "status.json"

    def command(name: str) -> list[object]:
        values = recipe(start, method, tmp_path, name) | {"parallel": {"expert": num_ranks}}
        return ["train", write_recipe(values, tmp_path / f"{name}.yaml"), "--status-file", status]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expect_success(run_command(command("whole"), tmp_path / "log_whole", num_ranks))
    assert json.loads(status.read_text()) == {
        "state": "finished", "step": 6, "has_saved": True, "reason": "",
    }  # fmt: skip

    for attempt in range(2):
        num_lines = 2 * attempt + 2
        with Command(command("stopped"), tmp_path / f"log_{attempt}", num_ranks) as running:
            # One rank alone hears of it, and not the one that writes the log; twice, as srun may send it.
            for _ in range(2):
                running.send_when(
                    lambda lines=num_lines: len(read_lines(stopped / "metrics.jsonl")) >= lines, number, num_ranks - 1
                )
            assert [finished.exit_code for finished in running.finish()] == [STOPPED] * num_ranks
        said = json.loads(status.read_text())
        steps = read_lines(stopped / "metrics.jsonl")[-1]["step"]
        assert (said["state"], said["step"]) == ("stopped", steps)
        assert (stopped / "checkpoints" / f"step_{steps:08d}" / "manifest.json").is_file()
        assert num_lines - 1 <= steps < 6

    expect_success(run_command(command("stopped"), tmp_path / "log_last", num_ranks))
    assert json.loads(status.read_text())["state"] == "finished"
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_run_that_cannot_start_says_that_it_failed(start: TinyStart, tmp_path: Path) -> None:
    values = recipe(start, "sft", tmp_path, "failed") | {"parallel": {"tensor": 3}}
    status = tmp_path / "status.json"
    (finished,) = run_command(
        ["train", write_recipe(values, tmp_path / "failed.yaml"), "--status-file", status], tmp_path / "log"
    )
    assert finished.exit_code == 2
    said = json.loads(status.read_text())
    assert said["state"] == "failed"
    assert "the number of processes does not fit" in said["reason"]
