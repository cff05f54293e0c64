"""One save: planned by all ranks together, written by each on its own, finished by the main rank.

Only the middle takes long, and it neither talks to other ranks nor touches a GPU: it can go on in a forked process.
The folder gets its name last, when every file is on the disk and its SHA-256 in the manifest.
"""

import io
import json
import os
import queue
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from megatron_moe_grpo.conversion.manifest import sha256_of, write_manifest
from megatron_moe_grpo.conversion.new_folder import MARGIN_BYTES, sync_folder
from megatron_moe_grpo.errors import CheckpointError, MoeGrpoError
from megatron_moe_grpo.mcore.checkpoint_folders import STATE, UNFINISHED
from megatron_moe_grpo.mcore.parallel import on_main_rank
from megatron_moe_grpo.mcore.shard_plan import content_metadata
from megatron_moe_grpo.mcore.shard_reader import WEIGHTS
from megatron_moe_grpo.mcore.transformer_config import building_device

# A tensor's archive, and its two lines in .metadata: measured 1.2 KB and 1.1 KB.
BYTES_AROUND_A_TENSOR = 4096


@dataclass(frozen=True)
class RankFiles:
    """What one rank wrote."""

    results: list[WriteResult]
    """Where each of its tensors stands."""
    digests: dict[str, str]
    """File name -> SHA-256."""


class CheckpointSave:
    """A save that has begun: what is written is the state at that moment, once memory is copied (by a fork) or kept."""

    def __init__(self, folder: Path, sharded: dict[str, Any], assets: Path, state: dict[str, Any]):
        """Plans with all ranks, and makes the unfinished folder.

        Args:
            folder: the name that the checkpoint gets in the end.
            sharded: Megatron's sharded state of model and optimizer.
        Raises:
            CheckpointError: on all ranks; the disk is too full, before anything is written, or cannot be written to.
        """
        self.folder, self._unfinished = folder, folder.with_suffix(UNFINISHED)
        self._state = json.dumps({**state, "has_optimizer": "optimizer" in sharded}, indent=1)
        self._num_bytes = _bytes_of_all_ranks(sharded)
        on_main_rank(lambda: self._make_folder(assets))
        sharded["content_metadata"] = content_metadata()
        shards, common = save_preprocess(sharded)
        # Now, because training goes on to change what it refers to.
        self._common = io.BytesIO()
        torch.save(common, self._common)
        weights = str(self._unfinished / WEIGHTS)
        self._plan = _PlanningStrategy("torch_dist", 1).async_save(shards, weights)
        self._buckets = FileSystemWriterAsync.preload_tensors(self._plan.writer.write_buckets)

    def write(self) -> RankFiles:
        """Writes this rank's tensors, flushes them to the disk and hashes them; no communication.

        Raises:
            CheckpointError: the disk is full, or cannot be written to.
        """
        with self._disk_errors(), ThreadPoolExecutor(max(1, len(self._buckets))) as pool:
            files = list(pool.map(self._write_file, self._buckets))
        return RankFiles(
            results=[result for file in files for result in file.results],
            digests={name: digest for file in files for name, digest in file.digests.items()},
        )

    def finish(self, outcomes: Sequence[RankFiles | MoeGrpoError]) -> None:
        """Writes the rest, manifest last, and gives the folder its name; on the main rank, after all have written.

        Raises:
            CheckpointError: a rank could not write, or the main rank cannot; the unfinished folder is removed.
        """
        try:
            ranks = []
            for outcome in outcomes:
                if isinstance(outcome, MoeGrpoError):
                    raise outcome
                ranks.append(outcome)
            with self._disk_errors():
                self._finish_files(ranks)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def _finish_files(self, ranks: Sequence[RankFiles]) -> None:
        digests = {f"{WEIGHTS}/{name}": digest for rank in ranks for name, digest in rank.digests.items()}
        self._refuse_hidden_files(digests)
        weights = self._unfinished / WEIGHTS
        (weights / COMMON_STATE_FNAME).write_bytes(self._common.getbuffer())
        self._plan.writer.finish(self._plan.metadata, [rank.results for rank in ranks])
        save_config(CheckpointingConfig("torch_dist"), weights)
        (self._unfinished / STATE).write_text(self._state, encoding="utf-8")
        write_manifest(self._unfinished, digests)
        for written in (weights, self._unfinished):
            sync_folder(written)
        os.rename(self._unfinished, self.folder)
        sync_folder(self.folder.parent)

    def _make_folder(self, assets: Path) -> None:
        with self._disk_errors():
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self.folder.parent).free
            if free_bytes < self._num_bytes + MARGIN_BYTES:
                raise self._error("no room for a checkpoint beside the ones that are there", free_bytes, "")
            (self._unfinished / WEIGHTS).mkdir(parents=True)
            shutil.copytree(assets, self._unfinished / "assets")

    def _write_file(self, bucket: tuple[Path, str, tuple[list, list]]) -> RankFiles:
        path, name, _ = bucket
        outcomes, running = queue.Queue(), queue.Queue()
        running.put(0)
        FileSystemWriterAsync.write_preloaded_data([self._plan.writer.transforms], 0, bucket, outcomes, running, True)
        _, outcome = outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        return RankFiles(outcome, {name: sha256_of(Path(path))})

    def _refuse_hidden_files(self, digests: dict[str, str]) -> None:
        hidden = [name for name in digests if not (self._unfinished / name).is_file()]
        if hidden:
            raise CheckpointError(
                f"{self._unfinished} does not hold what other processes wrote into it",
                got=f"no {', '.join(hidden[:3])}",
                expected="a folder that all nodes share",
                remedy="name an output_dir on a shared file system",
            )

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            free_bytes = shutil.disk_usage(self.folder.parent).free
            reason = f"; {_first_cause(error)}"[:300]
            raise self._error("the checkpoint could not be written", free_bytes, reason) from error

    def _error(self, what: str, free_bytes: int, details: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: {what}",
            got=f"{free_bytes:,} bytes free where it stands{details}",
            expected=f"{self._num_bytes + MARGIN_BYTES:,} bytes",
            remedy="free some space, or keep fewer with training.keep_checkpoints and training.keep_best; "
            "earlier checkpoints are as they were, and the same command goes on from the newest",
        )


def written(save: CheckpointSave) -> RankFiles | MoeGrpoError:
    """What this rank wrote, or why it could not: the other ranks must know before it is raised."""
    try:
        return save.write()
    except MoeGrpoError as error:
        return error


def finish_together(save: CheckpointSave, outcome: RankFiles | MoeGrpoError) -> None:
    """Gives the checkpoint its name if all ranks have written.  Raises CheckpointError on all ranks if one has not."""
    is_main = dist.get_rank() == 0
    outcomes: list[Any] | None = [None] * dist.get_world_size() if is_main else None
    dist.gather_object(outcome, outcomes, dst=0)
    on_main_rank(lambda: save.finish(outcomes))


@dataclass(frozen=True)
class _Plan:
    writer: FileSystemWriterAsync
    metadata: Metadata | None
    """What all ranks write; on the main rank."""


class _PlanningStrategy(TorchDistSaveShardedStrategy):
    """Megatron's own planning.  Its writing cannot be used: its results come back through a process of their own."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, save_state_dict_ret: tuple[Any, Metadata | None, Any]
    ) -> _Plan:
        return _Plan(writer, save_state_dict_ret[1])


def _first_cause(error: BaseException) -> BaseException:
    """torch's archive writer turns a full disk into a RuntimeError about positions."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _bytes_of_all_ranks(sharded: dict[str, Any]) -> int:
    """Of all tensors, each counted where it is written."""
    leaves = [leaf for leaf in nested_values(sharded) if isinstance(leaf, ShardedTensor | ShardedTensorFactory)]
    tensors = [leaf.data for leaf in leaves if is_main_replica(leaf.replica_id)]
    num_bytes = sum(tensor.nbytes + BYTES_AROUND_A_TENSOR for tensor in tensors)
    total = torch.tensor(num_bytes, dtype=torch.int64, device=building_device())
    dist.all_reduce(total)
    return int(total)
