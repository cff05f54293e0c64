"""Saves of a run: what stands on the disk when, which stay, and how a failure comes to light."""

import json
import os
import resource
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_work import exit_code_of_clean
from tiny_training_model import train_a_step, trainable_model

from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.checkpoint_saver import CheckpointSaver
from megatron_moe_grpo.mcore.optimizer import TrainableModel

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def assets(moe_checkpoint: Path) -> Path:
    return moe_checkpoint / "assets"


@pytest.fixture
def trainable(assets: Path) -> Iterator[TrainableModel]:
    with trainable_model(assets) as made:
        yield made


def saver_of(run: Path, in_background: bool = False, keep: int = 9, keep_best: int = 0) -> CheckpointSaver:
    return CheckpointSaver(run, keep, keep_best, in_background, last_step=None)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def digests(checkpoint: Path) -> dict[str, str]:
    files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
    # The only random number: torch's name for a save.
    return {name: entry["sha256"] for name, entry in files.items() if name != "weights/.metadata"}


def test_a_save_in_the_background_holds_the_moment_it_began(
    trainable: TrainableModel, assets: Path, tmp_path: Path
) -> None:
    train_a_step(trainable)
    saver_of(tmp_path / "foreground").save(1, trainable, assets, {"step": 1})
    saver = saver_of(tmp_path / "background", in_background=True)
    saver.save(1, trainable, assets, {"step": 1})
    train_a_step(trainable)
    assert names(tmp_path / "background") == ["step_00000001.unfinished"]
    saver.wait()
    assert names(tmp_path / "background") == ["step_00000001"]
    verify_manifest(tmp_path / "background" / "step_00000001")
    assert digests(tmp_path / "background" / "step_00000001") == digests(tmp_path / "foreground" / "step_00000001")


def test_a_saved_optimizer_steps_as_the_one_that_was_saved(
    trainable: TrainableModel, assets: Path, tmp_path: Path
) -> None:
    train_a_step(trainable)
    saver_of(tmp_path).save(1, trainable, assets, {"step": 1})
    train_a_step(trainable)
    expected = [parameter.detach().clone() for parameter in trainable.module.parameters()]
    train_a_step(trainable)
    load_checkpoint(tmp_path / "step_00000001", trainable.module, trainable)
    train_a_step(trainable)
    assert all(map(torch.equal, expected, trainable.module.parameters()))


def test_the_next_save_waits_for_the_one_before(trainable: TrainableModel, assets: Path, tmp_path: Path) -> None:
    saver = saver_of(tmp_path, in_background=True, keep=2)
    for step in (1, 2, 3):
        saver.save(step, trainable, assets, {"step": step})
    assert names(tmp_path) == ["step_00000001", "step_00000002", "step_00000003.unfinished"]
    saver.wait()
    assert names(tmp_path) == ["step_00000002", "step_00000003"]


def test_advance_finishes_a_save_and_never_waits(trainable: TrainableModel, assets: Path, tmp_path: Path) -> None:
    saver = saver_of(tmp_path, in_background=True)
    saver.advance()
    saver.save(1, trainable, assets, {"step": 1})
    num_calls = 0
    while names(tmp_path) != ["step_00000001"]:
        saver.advance()
        num_calls += 1
    assert num_calls > 1


def test_a_step_is_saved_once(trainable: TrainableModel, assets: Path, tmp_path: Path) -> None:
    """A stop right after a save, and a stop before the first step of a resumed run."""
    saver = saver_of(tmp_path)
    saver.save(1, trainable, assets, {"step": 1})
    written_at = (tmp_path / "step_00000001").stat().st_mtime_ns
    saver.save(1, trainable, assets, {"step": 1, "more": True})
    assert (tmp_path / "step_00000001").stat().st_mtime_ns == written_at
    CheckpointSaver(tmp_path, 1, 0, False, last_step=2).save(2, trainable, assets, {"step": 2})
    assert names(tmp_path) == ["step_00000001"]


def test_the_best_checkpoints_stay(trainable: TrainableModel, assets: Path, tmp_path: Path) -> None:
    saver = saver_of(tmp_path, keep=1, keep_best=2)
    for step, accuracy in enumerate((0.5, 0.75, 0.25, 0.5, None, 0.1), start=1):
        saver.save(step, trainable, assets, {"step": step} | ({} if accuracy is None else {"eval_accuracy": accuracy}))
    assert names(tmp_path) == ["step_00000001", "step_00000002", "step_00000006"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_said_before_anything_is_written(
    in_background: bool, trainable: TrainableModel, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(tmp_path, in_background)
    saver.save(1, trainable, assets, {"step": 1})
    saver.wait()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(CheckpointError, match=r"step_00000002: no room(?s:.*)1,000 bytes free(?s:.*)expected: \d+,\d+"):
        saver.save(2, trainable, assets, {"step": 2})
    assert names(tmp_path) == ["step_00000001"]


def fill_the_disk(run: Path, assets: Path, in_background: bool) -> None:
    """No file may grow beyond 100 KB: the kernel refuses as it does when a disk is full."""
    with trainable_model(assets) as trainable:
        saver = saver_of(run, in_background)
        saver.save(1, trainable, assets, {"step": 1})
        saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            saver.save(2, trainable, assets, {"step": 2})
            saver.wait()
        message = str(caught.value)
        assert str(run / "step_00000002") in message and "bytes free" in message and "File too large" in message
        # Said once; the run can end without it being said again.
        saver.wait()
        assert names(run) == ["step_00000001"]
        load_checkpoint(run / "step_00000001", trainable.module, trainable)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(in_background: bool, assets: Path, tmp_path: Path) -> None:
    assert exit_code_of_clean(fill_the_disk, tmp_path, assets, in_background) == 0


def test_a_writing_process_that_dies_is_noticed_by_the_next_save(
    trainable: TrainableModel, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(tmp_path, in_background=True)
    saver.save(1, trainable, assets, {"step": 1})
    monkeypatch.setattr(
        "megatron_moe_grpo.mcore.checkpoint_save.CheckpointSave.write",
        lambda save: os.kill(os.getpid(), signal.SIGKILL),
    )
    saver.save(2, trainable, assets, {"step": 2})
    with pytest.raises(CheckpointError, match=r"process that writes the checkpoint died(?s:.*)exit code -9"):
        saver.save(3, trainable, assets, {"step": 3})
    assert names(tmp_path) == ["step_00000001"]


def test_a_stop_signal_does_not_tear_what_is_written(trainable: TrainableModel, assets: Path, tmp_path: Path) -> None:
    """Slurm and torchrun signal every process of a job."""
    saver = saver_of(tmp_path, in_background=True)
    saver.save(1, trainable, assets, {"step": 1})
    *_, outcome = saver._running
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(outcome._process.pid, number)
    saver.wait()
    verify_manifest(tmp_path / "step_00000001")
    assert names(tmp_path) == ["step_00000001"]
