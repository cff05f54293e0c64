"""Rewrites a checkpoint so that each rank of a layout finds what it holds in files of its own; on one process.

Any checkpoint loads under any layout without this.  It saves reading: a rank of TP2 otherwise reads whole tensors and
keeps half of each.
"""

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.conversion.new_folder import new_folder
from megatron_moe_grpo.conversion.progress import Progress, no_progress
from megatron_moe_grpo.conversion.tensor_bytes import view_of_bytes
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank, smallest_world_size
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.shard_plan import RankPlan, Shard, plan_of_this_rank
from megatron_moe_grpo.mcore.shard_reader import METADATA, SHARD_SUFFIX, WEIGHTS, ShardReader
from megatron_moe_grpo.mcore.shard_writer import (
    BYTES_AROUND_A_SHARD,
    ShardWriter,
    split_into_files,
    without_archive_checksums,
)
from megatron_moe_grpo.mcore.streamed_checkpoint import MegatronCheckpoint

StageBuilder = Callable[[ParallelLayout], torch.nn.Module]
OPTIMIZER_KEY = re.compile(r"(?P<prefix>optimizer\.state\.\w+\.).+")


@dataclass(frozen=True)
class RankFiles:
    """One rank of the layout."""

    rank: int
    num_parameters: int
    """In its memory: those in its files and its copies of what other ranks write."""
    files: dict[str, list[Shard]]
    """File name -> what stands in it, optimizer state included."""
    objects: tuple[str, ...]
    """Keys of what stands in its first file and is no tensor."""
    num_bytes: int
    """Of the tensors in its files."""


class Resharding:
    """What becomes of a checkpoint under another layout: planned at once, written by `write`."""

    def __init__(self, checkpoint: Path, parallel: ParallelConfig, build_stage: StageBuilder):
        """
        Args:
            checkpoint: of any layout, with or without optimizer state; there must be no process group yet.
            build_stage: one rank's part of the model; called once a rank, under `torch.device("meta")`.
        Raises:
            CheckpointError: the checkpoint is not complete, or of another model.
            ConfigError: the model cannot be cut so.
        """
        self._checkpoint, self._reader = checkpoint, ShardReader(checkpoint)
        matches = filter(None, map(OPTIMIZER_KEY.fullmatch, self._reader.tensors))
        self._optimizer_prefixes = list(dict.fromkeys(match["prefix"] for match in matches))
        self.ranks = [self._files_of(rank, plan) for rank, plan in enumerate(_plans(parallel, build_stage))]
        self._refuse_other_model()
        self.num_bytes = sum(rank.num_bytes for rank in self.ranks)

    def table(self) -> str:
        """A line a rank: what it holds, what stands in its files."""
        lines = [f"{'rank':>4}  {'parameters held':>15}  {'bytes in files':>16}  files"]
        for rank in self.ranks:
            first, *others = rank.files or ["none"]
            files = f"{first} to {others[-1]}" if others else first
            lines.append(f"{rank.rank:4}  {rank.num_parameters:15,}  {rank.num_bytes:16,}  {files}")
        return "\n".join(lines)

    def write(self, out: Path, progress: Progress = no_progress) -> None:
        """Writes the checkpoint `out`; it appears whole or not at all.

        Raises:
            ConversionError: `out` exists, or the disk is too full; before anything is written.
            CheckpointError: a file of the checkpoint is not as it was written.
        """
        copied = [name for name in self._reader.file_names if not _is_rewritten(name)]
        num_bytes = sum((self._checkpoint / name).stat().st_size for name in copied) + self.num_bytes
        num_shards = sum(len(shards) for rank in self.ranks for shards in rank.files.values())
        with new_folder(out, num_bytes + BYTES_AROUND_A_SHARD * num_shards) as unfinished:
            for name in copied:
                self._reader.copy_file(name, unfinished / name)
            writer = ShardWriter(unfinished / WEIGHTS)
            with without_archive_checksums():
                for rank in self.ranks:
                    objects = {key: self._reader.read_object(key) for key in rank.objects}
                    for file_name, shards in rank.files.items():
                        writer.write_file(file_name, self._pieces(shards), objects, progress)
                        objects = {}
            writer.finish()
            write_manifest(unfinished, {f"{WEIGHTS}/{name}": digest for name, digest in writer.digests.items()})

    def _files_of(self, rank: int, plan: RankPlan) -> RankFiles:
        stored = self._reader.tensors
        self._refuse({shard.key for shard in plan.written} - stored.keys())
        # The optimizer's tensors are cut as the weights that they belong to; frozen weights have none.
        pieces = (shard.with_prefix(prefix) for prefix in ("", *self._optimizer_prefixes) for shard in plan.written)
        shards = [piece for piece in pieces if piece.key in stored]
        objects = [key for key in plan.objects if key in self._reader.objects]
        return RankFiles(
            rank=rank,
            num_parameters=sum(shard.num_values for shard in plan.held),
            files=split_into_files(shards, self._num_bytes_of, rank) if shards or objects else {},
            objects=tuple(objects),
            num_bytes=sum(map(self._num_bytes_of, shards)),
        )

    def _num_bytes_of(self, shard: Shard) -> int:
        return shard.num_values * self._reader.tensors[shard.key].properties.dtype.itemsize

    def _pieces(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, torch.Tensor]]:
        return ((shard, self._reader.read_region(shard.key, shard.offsets, shard.sizes)) for shard in shards)

    def _refuse_other_model(self) -> None:
        """Every stored value must go into exactly one file."""
        stored = self._reader.tensors
        shards = [shard for rank in self.ranks for part in rank.files.values() for shard in part]
        num_written = Counter[str]()
        for shard in shards:
            num_written[shard.key] += shard.num_values
        problems = {shard.key for shard in shards if shard.global_shape != tuple(stored[shard.key].size)}
        problems |= {key for key, tensor in stored.items() if num_written[key] != math.prod(tensor.size)}
        problems |= self._reader.objects - {key for rank in self.ranks for key in rank.objects}
        self._refuse(problems)

    def _refuse(self, keys: Set[str]) -> None:
        if keys:
            raise CheckpointError(
                f"{self._checkpoint} holds other weights than the model of its config.json",
                got=", ".join(sorted(keys)[:5]),
                remedy="copy the checkpoint again from where it was written",
            )


def different_tensors(checkpoint: Path, other: Path) -> list[str]:
    """Names of the tensors, optimizer state included, that are not the same to the bit in both.

    Raises:
        CheckpointError: one of the two is not complete, or a file of it has changed.
    """
    sources = [MegatronCheckpoint(folder, has_optimizer_state=True) for folder in (checkpoint, other)]
    names = list(dict.fromkeys([*sources[0].shapes, *sources[1].shapes]))

    def is_same(name: str) -> bool:
        described = [(source.shapes.get(name), source.dtypes.get(name)) for source in sources]
        # Bytes, because a NaN is not equal to itself.
        return described[0] == described[1] and operator.eq(*(view_of_bytes(source.read(name)) for source in sources))

    return [name for name in names if not is_same(name)]


def _plans(parallel: ParallelConfig, build_stage: StageBuilder) -> Iterator[RankPlan]:
    world_size = smallest_world_size(parallel)
    for rank in range(world_size):
        with imagined_rank(parallel, rank, world_size) as layout:
            yield plan_of_this_rank(lambda layout=layout: build_stage(layout))


def _is_rewritten(name: str) -> bool:
    return name.endswith(SHARD_SUFFIX) or name == f"{WEIGHTS}/{METADATA}"
