"""A run that is killed, whenever it is, and started again by the same command writes the bytes of one that was not.

What has to survive for that: weights, Adam's moments and step, the learning-rate schedule, the guidance counts, which
rows come next, and which noise each rollout gets.  One run is killed four times over: before its first checkpoint,
during a save, between two checkpoints, and right after its last step.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import Command, run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, tiny_start, write_recipe

RANKS = [("sft", 1), ("sft", 2), ("moe_grpo", 1), ("moe_grpo", 2)]
RESUMED_FILES = ("metrics.jsonl", "samples.jsonl")
LAST_STEP = 6


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


def steps_written(run: Path) -> int:
    return len(read_lines(run / "metrics.jsonl")) - 1


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step_*"))


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.unfinished/weights/*"))


def kill_during_a_save(arguments: list[object], run: Path, log: Path, num_ranks: int) -> None:
    """Again at the next save when the kill came a moment too late for the first."""
    for attempt in range(2):
        with Command(arguments, log / f"save_{attempt}", num_ranks) as command:
            command.kill_when(lambda: is_saving(run))
        if any(name.endswith(".unfinished") for name in checkpoints(run)):
            return
    raise AssertionError(f"no save was hit: {checkpoints(run)}")


@pytest.mark.parametrize(("method", "num_ranks"), RANKS)
def test_a_killed_run_continues_byte_for_byte(method: str, num_ranks: int, start: TinyStart, tmp_path: Path) -> None:
    def command(name: str) -> list[object]:
        values = recipe(start, method, tmp_path, name) | {"parallel": {"expert": num_ranks}}
        return ["train", write_recipe(values, tmp_path / f"{name}.yaml")]

    def kill_when(is_reached: Callable[[], bool], log: str) -> None:
        with Command(command("killed"), tmp_path / log, num_ranks) as running:
            running.kill_when(is_reached)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expect_success(run_command(command("whole"), tmp_path / "log_whole", num_ranks))

    kill_when(lambda: steps_written(killed) >= 1, "log_first")
    assert not any("unfinished" not in name for name in checkpoints(killed)), "killed too late to start from nothing"
    kill_during_a_save(command("killed"), killed, tmp_path / "log_saving", num_ranks)
    kill_when(lambda: steps_written(killed) >= LAST_STEP - 1, "log_between")
    assert checkpoints(killed)[-1] == "step_00000004"
    expect_success(run_command(command("killed"), tmp_path / "log_last", num_ranks))
    # The run is over: once more changes nothing.
    expect_success(run_command(command("killed"), tmp_path / "log_again", num_ranks))

    lines = read_lines(whole / "metrics.jsonl")[1:]
    assert len(lines) == LAST_STEP
    # Were the schedule flat or the rewards constant, a resume that forgets them would pass.
    assert len({round(line["learning_rate"], 9) for line in lines}) > 3
    assert method == "sft" or sum(line["groups_without_signal"] < 1 for line in lines) >= 3
    assert checkpoints(killed) == checkpoints(whole) == ["step_00000002", "step_00000004", "step_00000006"]
    for name in RESUMED_FILES if method == "moe_grpo" else RESUMED_FILES[:1]:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
