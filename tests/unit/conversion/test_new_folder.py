"""A folder appears whole or not at all; the disk's room is known before the first byte."""

import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
from forked_work import exit_code_of

from megatron_moe_grpo.conversion.new_folder import MARGIN_BYTES, new_folder
from megatron_moe_grpo.errors import ConversionError

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_new_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out, 0) as unfinished:
        (unfinished / "file").write_text("x")
        assert not out.exists() and unfinished.name == ".out.unfinished" and unfinished.parent == out.parent
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "x"


def test_new_folder_leaves_nothing_behind_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), new_folder(tmp_path / "out", 0) as unfinished:
        (unfinished / "file").write_text("x")
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


def test_new_folder_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    def killed_halfway() -> None:
        with new_folder(tmp_path / "out", 0) as unfinished:
            (unfinished / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(killed_halfway) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    with new_folder(tmp_path / "out", 0) as unfinished:
        assert list(unfinished.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_new_folder_refuses_an_existing_one(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="exists already"), new_folder(tmp_path, 0):
        pass


@pytest.mark.parametrize(("free_bytes", "is_enough"), [(1000 + MARGIN_BYTES, True), (999 + MARGIN_BYTES, False)])
def test_new_folder_asks_the_disk_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, is_enough: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * free_bytes, free_bytes, free_bytes))
    if is_enough:
        with new_folder(tmp_path / "out", 1000):
            pass
        return
    message = r"not enough room(?s:.*)33,555,431 bytes free(?s:.*)33,555,432 bytes"
    with pytest.raises(ConversionError, match=message), new_folder(tmp_path / "out", 1000):
        raise AssertionError("entered")
    assert list(tmp_path.iterdir()) == []
