"""The file holds what was written, and the digest is the file's, whatever the threads had left to do."""

import hashlib
import os
from pathlib import Path

import pytest

from megatron_moe_grpo.conversion import hashed_file
from megatron_moe_grpo.conversion.hashed_file import HashedFile


@pytest.mark.parametrize(
    ("hash_bytes", "flush_bytes", "write_bytes"), [(1, 1, 3), (1000, 50, 7), (10**9, 10**9, 10**6)]
)
def test_hashed_file_hashes_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_bytes: int, flush_bytes: int, write_bytes: int
) -> None:
    monkeypatch.setattr(hashed_file, "HASH_BYTES", hash_bytes)
    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", flush_bytes)
    monkeypatch.setattr(hashed_file, "WRITE_BYTES", write_bytes)
    blocks = [bytes([number]) * number for number in range(60)]
    with HashedFile(tmp_path / "file") as file:
        for block in blocks:
            file.write(block)
        file.write(memoryview(blocks[-1]))
    content = b"".join(blocks) + blocks[-1]
    assert (tmp_path / "file").read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_hashed_file_may_be_empty(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "file") as file:
        pass
    assert file.sha256 == hashlib.sha256(b"").hexdigest()


def test_hashed_file_is_on_the_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(os.fstat(number).st_size), fsync(number)))
    with HashedFile(tmp_path / "file") as file:
        file.write(b"12345")
        assert flushed == []
    assert flushed == [5]


def test_hashed_file_does_not_hide_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="no space left"), HashedFile(tmp_path / "file") as file:
        file.write(b"12345")
