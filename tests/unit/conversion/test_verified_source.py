"""No reader comes to its end with a folder that is not what its manifest says."""

from pathlib import Path

import pytest
import torch

from megatron_moe_grpo.conversion import MemorySource, read_all
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
