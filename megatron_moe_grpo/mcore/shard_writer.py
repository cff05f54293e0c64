"""Writes tensors in Megatron's `torch_dist` format, one at a time: torch's own writer keeps a file's tensors in memory.

A file is a row of `torch.save` archives; `.metadata` says where each stands (torch.distributed.checkpoint).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_moe_grpo.conversion.hashed_file import HashedFile
from megatron_moe_grpo.conversion.progress import Progress
from megatron_moe_grpo.mcore.shard_plan import Shard
from megatron_moe_grpo.mcore.shard_reader import SHARD_SUFFIX

# Small enough that several readers share the work, and that one waits not long for the check of its first file (0.4 s).
MAX_FILE_BYTES = 512 * 2**20
# A tensor's archive and its line in .metadata, measured: 1.2 KB and 0.4 KB.
BYTES_AROUND_A_SHARD = 2048
GATHERED_BYTES = 64 * 1024


class ShardWriter:
    """Collects what `.metadata` has to say while files are written.  `digests`: file name -> SHA-256."""

    def __init__(self, folder: Path):
        self.digests: dict[str, str] = {}
        self._folder = folder
        self._unfinished: dict[str, HashedFile] = {}
        self._contents: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._results: list[WriteResult] = []

    def write_file(
        self,
        file_name: str,
        pieces: Iterable[tuple[Shard, torch.Tensor]],
        objects: Mapping[str, bytes],
        progress: Progress,
    ) -> None:
        """Writes one file; of `pieces`, whose tensors must have storage of their own, one at a time is there."""
        file = HashedFile(self._folder / file_name)
        archive = _Archives(file)
        for key, content in objects.items():
            self._contents[key] = BytesStorageMetadata()
            with self._entry(MetadataIndex(key), file_name, archive):
                archive.write(content)
        archive.flush()
        for shard, tensor in pieces:
            self._describe(shard, tensor.dtype)
            with self._entry(MetadataIndex(shard.key, shard.offsets), file_name, archive):
                torch.save(tensor, archive)
            progress(tensor.nbytes)
            del tensor
        # Of the file before this one, hash and disk have caught up by now.
        self._finish_files()
        self._unfinished[file_name] = file

    def finish(self) -> None:
        """Waits until the last file is on the disk, and writes `.metadata`."""
        self._finish_files()
        _Unnamed(self._folder).finish(Metadata(self._contents), [self._results])

    def _finish_files(self) -> None:
        for file_name, file in self._unfinished.items():
            file.finish()
            self.digests[file_name] = file.sha256
        self._unfinished.clear()

    def _describe(self, shard: Shard, dtype: torch.dtype) -> None:
        chunk = ChunkStorageMetadata(torch.Size(shard.offsets), torch.Size(shard.sizes))
        tensor = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shard.global_shape), [])
        self._contents.setdefault(shard.key, tensor).chunks.append(chunk)

    @contextmanager
    def _entry(self, index: MetadataIndex, file_name: str, archive: "_Archives") -> Iterator[None]:
        start = archive.num_bytes
        yield
        length = archive.num_bytes - start
        self._results.append(WriteResult(index, length, _StorageInfo(file_name, start, length)))


class _Unnamed(FileSystemWriter):
    """Leaves out a random number and the path on this machine: the same weights give the same bytes."""

    def storage_meta(self) -> None:
        """Nothing reads it."""


class _Archives:
    """What `torch.save` writes to: for a tensor, one large block among forty of a few bytes, which are gathered."""

    def __init__(self, file: HashedFile):
        self._file, self._gathered, self.num_bytes = file, bytearray(), 0

    def write(self, block: bytes | memoryview) -> int:
        self.num_bytes += len(block)
        if len(block) < GATHERED_BYTES:
            self._gathered += block
        else:
            self.flush()
            self._file.write(block)
        return len(block)

    def flush(self) -> None:
        """Writes what was gathered; `torch.save` calls it at the end of each tensor."""
        if self._gathered:
            self._file.write(self._gathered)
            self._gathered.clear()


@contextmanager
def without_archive_checksums() -> Iterator[None]:
    """The manifest has SHA-256; the CRC-32 in each archive takes three times as long as writing (0.39 for 1.5 GB/s)."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def split_into_files(
    shards: Iterable[Shard], num_bytes_of: Callable[[Shard], int], rank: int
) -> dict[str, list[Shard]]:
    """File name -> its shards, in their order, at most MAX_FILE_BYTES each but for a single larger one."""
    files: list[list[Shard]] = [[]]
    num_bytes = 0
    for shard in shards:
        num_bytes += num_bytes_of(shard)
        if files[-1] and num_bytes > MAX_FILE_BYTES:
            files.append([])
            num_bytes = num_bytes_of(shard)
        files[-1].append(shard)
    return {f"__{rank}_{number}{SHARD_SUFFIX}": part for number, part in enumerate(files)}
