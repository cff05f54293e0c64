"""Each file is checked before it is used, whichever is used first; sizes at once."""

from pathlib import Path

import pytest

from megatron_moe_grpo.conversion.checked_files import CheckedFiles
from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name * 10)
    write_manifest(tmp_path)
    return tmp_path


def test_checked_files_gives_names_and_accepts_what_is_whole(folder: Path) -> None:
    files = CheckedFiles(folder)
    assert files.names == ["a", "b", "c"]
    for name in ("b", "a", "b", "c"):
        files.require(name, following=["c"])


def test_checked_files_refuses_a_changed_file_when_it_is_used(folder: Path) -> None:
    (folder / "b").write_text("a" * 10)
    files = CheckedFiles(folder)
    # Begins to hash b meanwhile; what is wrong with it does not concern a.
    files.require("a", following=["b"])
    with pytest.raises(CheckpointError, match="b has changed"):
        files.require("b")
    files.require("c")


def test_checked_files_compares_sizes_at_once(folder: Path) -> None:
    (folder / "c").write_text("")
    with pytest.raises(CheckpointError, match=r"c has the wrong size(?s:.*)0 bytes(?s:.*)10 bytes"):
        CheckedFiles(folder)


def test_checked_files_refuses_a_file_that_the_manifest_does_not_name(folder: Path) -> None:
    (folder / "d").write_text("d")
    with pytest.raises(CheckpointError, match="d is not the file that was written"):
        CheckedFiles(folder).require("d")
