"""A folder is what its manifest says, or is refused with the name of the first file that is not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_moe_grpo.conversion.manifest import verify_manifest, write_manifest
from megatron_moe_grpo.errors import CheckpointError

WEIGHTS = bytes(range(256)) * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "shard").write_bytes(WEIGHTS)
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "empty").touch()
    write_manifest(tmp_path)
    return tmp_path


def test_write_manifest_lists_every_file_but_itself(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {"weights/shard", "state.json", "empty"}
    assert files["weights/shard"] == {"bytes": 2560, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    # SHA-256 of nothing, from its standard.
    assert files["empty"]["sha256"].startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_write_manifest_again_gives_the_same_bytes(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == before


def test_verify_manifest_accepts_what_was_written_and_notes_added_later(folder: Path) -> None:
    verify_manifest(folder)
    (folder / "note.md").write_text("kept by a person")
    verify_manifest(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "weights/__0_9.distcp", "model-00002-of-00002.safetensors"])
def test_verify_manifest_refuses_a_file_that_would_be_used_unseen(folder: Path, name: str) -> None:
    (folder / name).write_text("added later")
    with pytest.raises(CheckpointError, match=f"not written with(?s:.*){name}"):
        verify_manifest(folder)


def test_verify_manifest_reads_past_the_first_block(folder: Path) -> None:
    shard = folder / "weights" / "shard"
    shard.write_bytes(bytes(9 << 20))
    write_manifest(folder)
    shard.write_bytes(bytes((9 << 20) - 1) + b"\1")
    with pytest.raises(CheckpointError, match="shard has changed"):
        verify_manifest(folder)


@pytest.mark.parametrize("position", [0, 1000, 2559])
@pytest.mark.parametrize("bit", [0, 7])
def test_verify_manifest_sees_one_flipped_bit(folder: Path, position: int, bit: int) -> None:
    content = bytearray(WEIGHTS)
    content[position] ^= 1 << bit
    (folder / "weights" / "shard").write_bytes(content)
    with pytest.raises(CheckpointError, match="weights/shard has changed since it was written"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights" / "shard").unlink(), "lacks a file(?s:.*)no weights/shard"),
        (lambda folder: (folder / "state.json").write_text("{"), "state.json has the wrong size(?s:.*)1 bytes(?s:.*)2"),
        (lambda folder: (folder / "empty").write_text("x"), "empty has the wrong size"),
        (lambda folder: (folder / "manifest.json").unlink(), "not a complete checkpoint(?s:.*)no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {'), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": []}'), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a": {}}}'), "manifest.json is damaged"),
    ],
)
def test_verify_manifest_names_what_is_wrong(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        verify_manifest(folder)
    assert "to do:" in str(caught.value)


def test_verify_manifest_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        verify_manifest(tmp_path / "absent")
