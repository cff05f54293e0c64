"""Checkpoints of models that do not fit into memory: written and read one tensor at a time, on one process.

What is written loads as any other checkpoint (`checkpoint.py`), and any other is read.
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy
from torch import Tensor

from megatron_moe_grpo.conversion.manifest import write_manifest
from megatron_moe_grpo.conversion.new_folder import new_folder
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.conversion.progress import Progress, no_progress
from megatron_moe_grpo.conversion.tensor_bytes import source_bytes
from megatron_moe_grpo.conversion.tensor_source import TensorSource
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.mcore.shard_plan import ModelBuilder, RankPlan, Shard, content_metadata, plan_of_this_rank
from megatron_moe_grpo.mcore.shard_reader import WEIGHTS, ShardReader
from megatron_moe_grpo.mcore.shard_writer import (
    BYTES_AROUND_A_SHARD,
    ShardWriter,
    split_into_files,
    without_archive_checksums,
)
from megatron_moe_grpo.mcore.stacked_names import num_stacked_axes, unstacked_name

OPTIMIZER_PREFIX = "optimizer."


def write_streamed_checkpoint(
    folder: Path,
    source: TensorSource,
    build_model: ModelBuilder,
    assets: Path,
    state: dict[str, Any],
    progress: Progress = no_progress,
) -> None:
    """Writes `folder` as `save_checkpoint` does without an optimizer; it appears whole or not at all.

    Needs process groups of one process.

    Args:
        source: the weights by the names of the unsharded model's state_dict; their dtype is kept.
        build_model: gives that model; called once, under `torch.device("meta")`.
        assets: folder of config.json, tokenizer and processor files.
        state: what state.json shall say.
    Raises:
        ConversionError: names or shapes are not the model's, `folder` exists, or the disk is too full; before anything
            is written.
    """
    plan = plan_of_this_rank(build_model)
    shards = _in_order_of(source, plan)

    def num_bytes_of_shard(shard: Shard) -> int:
        return shard.num_values * source.dtypes[shard.name].itemsize

    num_bytes = source_bytes(source) + BYTES_AROUND_A_SHARD * len(shards) + _folder_bytes(assets)
    with new_folder(folder, num_bytes) as unfinished:
        weights = unfinished / WEIGHTS
        weights.mkdir()
        shutil.copytree(assets, unfinished / "assets")
        writer, objects = ShardWriter(weights), plan.objects
        with without_archive_checksums():
            for file_name, part in split_into_files(shards, num_bytes_of_shard, rank=0).items():
                writer.write_file(file_name, _pieces(part, source), objects, progress)
                objects = {}
        writer.finish()
        TorchCommonSaveStrategy("torch", 1).save_common({"content_metadata": content_metadata()}, weights)
        save_config(CheckpointingConfig("torch_dist"), weights)
        text = json.dumps({**state, "has_optimizer": False}, indent=1)
        (unfinished / "state.json").write_text(text, encoding="utf-8")
        write_manifest(unfinished, {f"{WEIGHTS}/{name}": digest for name, digest in writer.digests.items()})


class MegatronCheckpoint:
    """The weights of a checkpoint, whatever layout wrote it, by the names of the unsharded model's state_dict.

    Every file is checked against the manifest before it is first read; optimizer state is left alone.  Needs no process
    group and no model.
    """

    def __init__(self, folder: Path, has_optimizer_state: bool = False):
        """
        Args:
            has_optimizer_state: give the optimizer's tensors too, under `optimizer.state.<which>.<name>`.
        Raises:
            CheckpointError: the folder is not complete, or not what its manifest says.
        """
        self._reader = ShardReader(folder)
        places = [
            (name, (key, index))
            for key in self._reader.tensors
            if has_optimizer_state or not key.startswith(OPTIMIZER_PREFIX)
            for name, index in self._names_in(key)
        ]
        self._places = dict(sorted(places, key=lambda place: self._reader.place_of(*place[1])))
        self.shapes: dict[str, Shape] = {
            name: tuple(self._reader.tensors[key].size[len(index) :]) for name, (key, index) in self._places.items()
        }
        self.dtypes: dict[str, torch.dtype] = {
            name: self._reader.tensors[key].properties.dtype for name, (key, _) in self._places.items()
        }

    def read(self, name: str) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: a file that holds a part of it has changed, or no file holds some part.
        """
        key, index = self._places[name]
        shape = self.shapes[name]
        region = self._reader.read_region(key, (*index, *(0 for _ in shape)), (*(1 for _ in index), *shape))
        return region.reshape(shape)

    def _names_in(self, key: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The tensors of a stack, with their places in it."""
        lengths = self._reader.tensors[key].size[: num_stacked_axes(key)]
        for index in itertools.product(*map(range, lengths)):
            yield unstacked_name(key, index), index


def _in_order_of(source: TensorSource, plan: RankPlan) -> list[Shard]:
    """The plan's shards in the order in which the source is best read.

    Raises:
        ConversionError: names or shapes differ.
    """
    expected = {shard.name: shard.whole_shape for shard in plan.written}
    given = {name: tuple(shape) for name, shape in source.shapes.items()}
    if given != expected:
        missing, unexpected = expected.items() - given.items(), given.items() - expected.items()
        raise ConversionError(
            "The converted weights do not fit the Megatron model.",
            got=f"missing {sorted(missing)[:5]}, unexpected {sorted(unexpected)[:5]}",
            expected=f"its {len(expected)} tensors",
        )
    order = {name: number for number, name in enumerate(given)}
    return sorted(plan.written, key=lambda shard: order[shard.name])


def _pieces(shards: Sequence[Shard], source: TensorSource) -> Iterator[tuple[Shard, Tensor]]:
    """Each shard's values; a tensor of `source` is read once if its pieces follow one another."""
    name, whole = "", torch.empty(0)
    for shard in shards:
        if shard.name != name:
            # Before the next one is read, or two would be in memory.
            whole = torch.empty(0)
            name, whole = shard.name, source.read(shard.name)
        piece = shard.cut_from(whole)
        # torch.save writes the whole storage of a view.
        is_all = piece.is_contiguous() and piece.untyped_storage().nbytes() == piece.nbytes
        yield shard, piece if is_all else piece.clone(memory_format=torch.contiguous_format)
        del piece


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
