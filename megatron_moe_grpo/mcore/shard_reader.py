"""Reads any region of the tensors of a `torch_dist` folder, out of however many shards hold it."""

import io
import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_moe_grpo.conversion.checked_files import CheckedFiles
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.pickle_allow_list import refuse_unsafe_pickles
from megatron_moe_grpo.mcore.stacked_names import num_stacked_axes

WEIGHTS = "weights"
METADATA = ".metadata"
SHARD_SUFFIX = ".distcp"


class ShardReader:
    """The stored tensors of a checkpoint; needs no process group, and no file is read before it was checked."""

    def __init__(self, folder: Path):
        """
        Raises:
            CheckpointError: the checkpoint is not complete, a shard has another size, another file has changed, or a
                pickle names something that training does not write.
        """
        self._folder, self._files = folder, CheckedFiles(folder)
        for name in self._files.names:
            if not name.endswith(SHARD_SUFFIX):
                self._files.require(name)
        self._refuse_unsafe_pickles()
        self._reader = FileSystemReader(folder / WEIGHTS)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        contents = metadata.state_dict_metadata
        self.tensors = {key: value for key, value in contents.items() if isinstance(value, TensorStorageMetadata)}
        self.objects = contents.keys() - self.tensors.keys()
        names = {info.relative_path for info in self._reader.storage_data.values()}
        self._shard_files = [f"{WEIGHTS}/{name}" for name in sorted(names, key=lambda name: (len(name), name))]
        self._file_numbers = {name: number for number, name in enumerate(self._shard_files)}
        self._chunks: dict[str, dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}

    def read_region(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """That part of the stored tensor, `sizes` large, as a tensor of its own; one step on each stacked axis.

        Raises:
            CheckpointError: the shards do not cover it, or a file that holds it has changed.
        """
        stored = self.tensors[key]
        near = self._chunks_near(key, offsets)
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        if near == [wanted]:
            return self._load(MetadataIndex(key, wanted.offsets)).reshape(*sizes)
        items = create_read_items_for_chunk_list(key, replace(stored, chunks=near), [wanted])
        num_found = sum(math.prod(item.lengths) for item in items)
        if num_found != math.prod(sizes):
            raise CheckpointError(
                f"{self._folder / WEIGHTS} holds only a part of a tensor",
                got=f"{num_found:,} of the {math.prod(sizes):,} values of {key} at {list(offsets)}",
                expected="shards that cover it once",
                remedy="copy the checkpoint again from where it was written",
            )
        planner = _IntoTensor(torch.empty(*sizes, dtype=stored.properties.dtype, device="cpu"))
        self._read(items, planner)
        return planner.target

    def read_object(self, key: str) -> bytes:
        """A stored object as it was serialised; nothing is unpickled."""
        index, nothing = MetadataIndex(key), torch.Size([0])
        planner = _IntoTensor(torch.empty(0))
        self._read([ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)], planner)
        return planner.content

    @property
    def file_names(self) -> list[str]:
        """Every file of the checkpoint, by its path inside the folder."""
        return self._files.names

    def copy_file(self, name: str, target: Path) -> None:
        """Copies a file, once it is known to be whole; makes the folder it goes into."""
        self._files.require(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / name, target)

    def place_of(self, key: str, offsets: Sequence[int]) -> tuple[int, int]:
        """Where the first shard at that place of the stack stands: number of the file, offset inside it."""
        chunks = self._chunks_near(key, offsets)
        if not chunks:
            return len(self._shard_files), 0
        chunk = min(chunks, key=lambda chunk: tuple(chunk.offsets))
        info = self._reader.storage_data[MetadataIndex(key, chunk.offsets)]
        return self._file_numbers[f"{WEIGHTS}/{info.relative_path}"], info.offset

    def _refuse_unsafe_pickles(self) -> None:
        try:
            refuse_unsafe_pickles(self._folder / WEIGHTS)
        except CheckpointError:
            # A torn file may look like a made-up one: if that is all, say so.
            for name in self._files.names:
                self._files.require(name)
            raise

    def _chunks_near(self, key: str, offsets: Sequence[int]) -> list[ChunkStorageMetadata]:
        """The shards at that place of the stack: 48 layers of 128 experts have too many to look through each time."""
        num_stacked = num_stacked_axes(key)
        if key not in self._chunks:
            by_place = self._chunks[key] = {}
            for chunk in self.tensors[key].chunks:
                ranges = zip(chunk.offsets[:num_stacked], chunk.sizes[:num_stacked], strict=True)
                for place in itertools.product(*(range(start, start + size) for start, size in ranges)):
                    by_place.setdefault(place, []).append(chunk)
        return self._chunks[key].get(tuple(offsets[:num_stacked]), [])

    def _load(self, index: MetadataIndex) -> Tensor:
        """A whole shard, which torch's reader would copy once more: half of the CPU time of reading."""
        info = self._reader.storage_data[index]
        self._require(info)
        with (self._folder / WEIGHTS / info.relative_path).open("rb") as file:
            return torch.load(self._reader._slice_file(file, info), map_location="cpu", weights_only=True)

    def _read(self, items: list[ReadItem], planner: "_IntoTensor") -> None:
        for item in items:
            self._require(self._reader.storage_data[item.storage_index])
        self._reader.read_data(LoadPlan(items), planner)

    def _require(self, info: _StorageInfo) -> None:
        """Returns when the file is known to be whole."""
        name = f"{WEIGHTS}/{info.relative_path}"
        self._files.require(name, following=self._shard_files[self._file_numbers[name] + 1 :])


class _IntoTensor(DefaultLoadPlanner):
    """Tells torch's reader to put what it reads into `target`, or into `content` where it is no tensor."""

    def __init__(self, target: Tensor):
        super().__init__()
        self.target, self.content = target, b""

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        ranges = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self.target[tuple(slice(start, start + length) for start, length in ranges)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It is in its place."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.content = value.getvalue()
