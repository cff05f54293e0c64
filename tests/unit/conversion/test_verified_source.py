"""No reader comes to its end with a folder that is not what its manifest says."""

import threading
import time
from pathlib import Path

import pytest
import torch

from megatron_moe_grpo.conversion import MemorySource, manifest, read_all
from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.conversion.verified_source import verified
from megatron_moe_grpo.errors import CheckpointError

SOURCE = MemorySource({"a": torch.ones(2), "b": torch.zeros(3)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shard").write_bytes(b"weights" * 100_000)
    write_manifest(tmp_path)
    return tmp_path


def test_verified_gives_what_the_source_gives(folder: Path) -> None:
    with verified(SOURCE, folder) as source:
        assert source.shapes == SOURCE.shapes and source.dtypes == SOURCE.dtypes
        assert [source.read("a").tolist() for _ in range(3)] == [[1, 1]] * 3
        assert {name: tensor.tolist() for name, tensor in read_all(source).items()} == {"a": [1, 1], "b": [0, 0, 0]}


@pytest.mark.parametrize("order", ["ab", "ba", "aab"])
def test_verified_refuses_a_flipped_bit_at_the_last_tensor_at_the_latest(folder: Path, order: str) -> None:
    damaged = bytearray((folder / "shard").read_bytes())
    damaged[-1] ^= 1
    (folder / "shard").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="shard has changed"), verified(SOURCE, folder) as source:
        for name in order:
            source.read(name)


def test_verified_asks_for_no_manifest(tmp_path: Path) -> None:
    with verified(SOURCE, tmp_path) as source:
        assert source is SOURCE


def test_verified_hashes_nothing_before_the_first_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun = threading.Event()

    def verify(*arguments: object) -> None:
        has_begun.set()

    monkeypatch.setattr("megatron_moe_grpo.conversion.verified_source.verify_manifest", verify)
    with verified(SOURCE, folder) as source:
        assert not has_begun.wait(0.1)
        source.read("a")
        assert has_begun.wait(10)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_verified_stops_hashing_when_the_reader_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    sha256 = manifest.hashlib.sha256
    blocks: list[int] = []

    class SlowDigest:
        """A twentieth of a second for each block: 2 s for the whole file."""

        def update(self, block: bytes) -> None:
            blocks.append(len(block))
            time.sleep(0.05)

        def hexdigest(self) -> str:
            return sha256().hexdigest()

    (folder / "shard").write_bytes(bytes(40 * 2**20))
    write_manifest(folder)
    monkeypatch.setattr(manifest.hashlib, "sha256", SlowDigest)
    with pytest.raises(failure), verified(SOURCE, folder) as source:
        source.read("a")
        raise failure
    num_blocks = len(blocks)
    assert num_blocks < 10
    time.sleep(0.2)
    assert len(blocks) == num_blocks, "the thread goes on"
