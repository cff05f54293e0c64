"""Which checkpoint counts as the newest, and which are removed."""

from pathlib import Path

from megatron_moe_grpo.mcore.checkpoint_folders import newest_checkpoint, remove_old_checkpoints, step_folder


def make(parent: Path, *names: str) -> None:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "file").write_text("x")


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_step_folder_sorts_by_step() -> None:
    folders = [step_folder(Path("run"), step) for step in (9, 10, 99_999_999)]
    assert sorted(folders) == folders
    assert folders[0] == Path("run/step_00000009")


def test_newest_checkpoint_is_the_last_complete_one(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    make(tmp_path, "step_00000002", "step_00000010", "step_00000012.unfinished", "other")
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000010"


def test_remove_old_checkpoints_keeps_the_newest_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    make(tmp_path, *(f"step_{step:08d}" for step in (2, 4, 6, 8)), "step_00000001.unfinished", "mine")
    remove_old_checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["mine", "step_00000006", "step_00000008"]
    remove_old_checkpoints(tmp_path, keep=3)
    assert names(tmp_path) == ["mine", "step_00000006", "step_00000008"]
