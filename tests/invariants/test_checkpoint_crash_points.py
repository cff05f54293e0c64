"""A run that dies at any moment of a save has a whole checkpoint to go on from."""

import shutil
from pathlib import Path

import pytest
from forked_work import exit_code_of_clean
from save_and_die import DIED, save_and_die
from tiny_training import tiny_start

from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.mcore.checkpoint_folders import complete_checkpoints, newest_checkpoint, step_folder


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file: each more would be two more points."""
    start = tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")
    folder = tmp_path_factory.mktemp("assets")
    shutil.copyfile(start.untrained / "assets" / "config.json", folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def template(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoint of step 1."""
    run = tmp_path_factory.mktemp("crash") / "template"
    assert exit_code_of_clean(save_and_die, run, assets, 1, None) == 0
    return run


def test_every_crash_point_of_a_save_leaves_a_whole_checkpoint(template: Path, assets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(template, run)
    assert exit_code_of_clean(save_and_die, run, assets, 2, None) == 0
    assert complete_checkpoints(run) == [step_folder(run, 2)]
    # Measured 28: folders, files, manifest, two renames, and a deletion for each file of the old one.
    total = int(run.with_suffix(".changes").read_text())
    assert total >= 24
    found = []
    for point in range(total):
        shutil.rmtree(run)
        shutil.copytree(template, run)
        assert exit_code_of_clean(save_and_die, run, assets, 2, point) == DIED
        newest = newest_checkpoint(run)
        assert newest is not None, f"nothing is left after change {point}"
        for checkpoint in complete_checkpoints(run):
            verify_manifest(checkpoint)
        found.append(newest.name)
    assert set(found) == {"step_00000001", "step_00000002"}
    # What the last crash left is no hindrance.
    assert exit_code_of_clean(save_and_die, run, assets, 3, None) == 0
    assert [path.name for path in run.iterdir()] == ["step_00000003"]
