"""A run whose newest checkpoint is damaged goes on from the one before, and ends with the bytes of a whole run.

Two ranks: each verifies a half of the files, so that most damage is found on one of them only.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import Command, run_command
from tiny_training import TinyStart, expect_success, recipe, tiny_start, write_recipe

from megatron_moe_grpo.conversion.manifest import write_manifest

STEPS = [f"step_{step:08d}" for step in (2, 4, 6)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


def command(start: TinyStart, home: Path, name: str, is_async: bool = False) -> list[object]:
    values = recipe(start, "sft", home, name) | {"parallel": {"expert": 2}}
    values["training"]["async_save"] = is_async
    return ["train", write_recipe(values, home / f"{name}.yaml")]


@pytest.fixture(scope="module")
def whole(start: TinyStart, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    home = tmp_path_factory.mktemp("whole")
    expect_success(run_command(command(start, home, "whole"), home / "log", 2))
    return home / "whole"


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The run as it stood after step 5: two checkpoints, and lines that are written anew."""
    run = tmp_path / "stopped"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns(STEPS[2]))
    text = (run / "config.yaml").read_text(encoding="utf-8")
    text = text.replace("name: whole", "name: stopped").replace(str(whole.parent), str(tmp_path))
    (run / "config.yaml").write_text(text, encoding="utf-8")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    return run


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "flipped_byte": ("weights/__1_1.distcp", flip_byte, "has changed since it was written"),
    "another_ranks_flipped_byte": ("weights/__1_0.distcp", flip_byte, "has changed since it was written"),
    "torn_metadata": ("weights/.metadata", cut_in_half, "has the wrong size"),
    "missing_manifest": ("manifest.json", Path.unlink, "is not a complete checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(name: str, start: TinyStart, stopped: Path, whole: Path) -> None:
    file, damage, reason = DAMAGES[name]
    damage(stopped / "checkpoints" / STEPS[1] / file)
    ranks = run_command(command(start, stopped.parent, "stopped"), stopped.parent / "log", 2)
    expect_success(ranks)
    said = ranks[0].output
    assert f"{STEPS[1]} is damaged and was renamed to {STEPS[1]}.damaged" in said and reason in said
    assert "going on from step 2" in said and "step 3/6" in said and "step 2/6" not in said
    assert names(stopped) == [STEPS[0], STEPS[1], f"{STEPS[1]}.damaged", STEPS[2]]
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_run_of_damaged_checkpoints_stops_and_changes_nothing(start: TinyStart, stopped: Path) -> None:
    """To begin again at step 0 would throw its log away: that is for a person to say."""
    log = (stopped / "metrics.jsonl").read_bytes()
    for step in STEPS[:2]:
        flip_byte(stopped / "checkpoints" / step / "weights" / "common.pt")
    ranks = run_command(command(start, stopped.parent, "stopped"), stopped.parent / "log", 2)
    for rank in ranks:
        assert rank.exit_code != 0 and "Traceback" not in rank.output
    said = ranks[0].output
    assert "no checkpoint of this run is whole" in said and all(
        f"{step}/weights/common.pt" in said for step in STEPS[:2]
    )
    assert names(stopped) == STEPS[:2]
    assert (stopped / "metrics.jsonl").read_bytes() == log


class MakesFolder:
    """What an attacker's pickle does."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self._path),)


def test_a_run_with_a_checkpoint_that_carries_code_stops(start: TinyStart, stopped: Path) -> None:
    checkpoint, canary = stopped / "checkpoints" / STEPS[1], stopped.parent / "canary"
    (checkpoint / "weights" / ".metadata").write_bytes(pickle.dumps(MakesFolder(canary)))
    write_manifest(checkpoint)
    ranks = run_command(command(start, stopped.parent, "stopped"), stopped.parent / "log", 2)
    assert all(rank.exit_code != 0 for rank in ranks)
    assert "weights/.metadata names something that is never loaded" in ranks[0].output
    assert "mkdir" in ranks[0].output and not canary.exists()
    assert names(stopped) == STEPS[:2]


def test_a_run_killed_while_it_saves_in_the_background_continues(start: TinyStart, whole: Path, tmp_path: Path) -> None:
    """The writing processes die with it (`kill_when` looks); what it leaves is what the foreground would leave."""
    run = tmp_path / "killed"
    with Command(command(start, tmp_path, "killed", is_async=True), tmp_path / "log_killed", 2) as running:
        running.kill_when(lambda: any((run / "checkpoints").glob("*.unfinished/weights/__1_*")))
    expect_success(run_command(command(start, tmp_path, "killed", is_async=True), tmp_path / "log", 2))
    assert names(run) == STEPS
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for step in STEPS:
        for shard in (whole / "checkpoints" / step / "weights").glob("*.distcp"):
            assert (run / "checkpoints" / step / "weights" / shard.name).read_bytes() == shard.read_bytes()
