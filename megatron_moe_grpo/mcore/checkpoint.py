"""Checkpoints: Megatron's distributed format, loadable under any parallel layout, complete or not there at all.

step_00000100/
    weights/        model and optimizer, Megatron `torch_dist` shards
    assets/         config.json, tokenizer and processor files of the Hugging Face model
    state.json      step, seeds, guidance counts: what is not a tensor of the model
    manifest.json   SHA-256 of every file; written last, before the folder gets its name
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_moe_grpo.conversion.manifest import verify_manifest, write_manifest
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import on_main_rank
from megatron_moe_grpo.mcore.shard_plan import checkpoint_metadata, content_metadata


def step_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands; names sort by step."""
    return parent / f"step_{step:08d}"


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    assets: Path,
    state: dict[str, Any],
    trainable: TrainableModel | None = None,
) -> None:
    """Writes `folder` from all ranks; it appears whole or not at all.  Without `trainable`: weights only."""
    unfinished = folder.with_suffix(".unfinished")
    is_main = dist.get_rank() == 0
    if is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "weights").mkdir(parents=True)
        shutil.copytree(assets, unfinished / "assets")
    dist.barrier()
    sharded = _sharded_state(model, trainable, checkpoint_metadata(), is_loading=False)
    dist_checkpointing.save(sharded, str(unfinished / "weights"), content_metadata=content_metadata())
    dist.barrier()
    if is_main:
        has_optimizer = trainable is not None
        text = json.dumps({**state, "has_optimizer": has_optimizer}, indent=1)
        (unfinished / "state.json").write_text(text, encoding="utf-8")
        write_manifest(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    dist.barrier()


def load_checkpoint(folder: Path, model: torch.nn.Module, trainable: TrainableModel | None = None) -> dict[str, Any]:
    """Fills `model` (and the optimizer, with `trainable`) from `folder` under this run's layout; returns state.json.

    Raises CheckpointError, on every rank, before any weight is touched when a file is missing or changed.
    """
    on_main_rank(lambda: verify_manifest(folder))
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if trainable is not None and not state["has_optimizer"]:
        raise CheckpointError(
            f"{folder} holds no optimizer state",
            expected="a checkpoint that training wrote",
            remedy="start a new run from it with model.checkpoint instead of resuming",
        )
    sharded = _sharded_state(model, trainable, checkpoint_metadata(), is_loading=True)
    try:
        loaded = dist_checkpointing.load(sharded, str(folder / "weights"))
    # CheckpointException is a BaseException: `except Exception` would let it end the process without a word.
    except (CheckpointException, CheckpointingException, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights in {folder} do not fit this model",
            got=str(error)[:600],
            expected="a checkpoint of a model with the same config.json",
        ) from error
    model.load_state_dict(loaded["model"])
    if trainable is not None:
        trainable.optimizer.load_state_dict(_nest_for_layout(loaded["optimizer"], trainable))
        trainable.scheduler.load_state_dict(loaded["scheduler"])
    return state


def newest_checkpoint(parent: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    complete = sorted(folder for folder in parent.glob("step_*") if folder.suffix != ".unfinished")
    return complete[-1] if complete else None


def remove_old_checkpoints(parent: Path, keep: int) -> None:
    """Deletes all but the newest `keep`, and what a killed process left unfinished; not while a save is under way.

    A folder loses its name first, so that half of one is never taken for whole.
    """
    complete = sorted(folder for folder in parent.glob("step_*") if folder.suffix != ".unfinished")
    for folder in complete[:-keep]:
        doomed = folder.with_suffix(".unfinished")
        os.replace(folder, doomed)
    for unfinished in parent.glob("step_*.unfinished"):
        shutil.rmtree(unfinished)


def _sharded_state(
    model: torch.nn.Module, trainable: TrainableModel | None, metadata: dict[str, Any], is_loading: bool
) -> dict[str, Any]:
    state = {"model": model.sharded_state_dict(metadata=metadata)}
    if trainable is not None:
        state["optimizer"] = trainable.optimizer.sharded_state_dict(
            state["model"], is_loading=is_loading, metadata=metadata
        )
        state["scheduler"] = trainable.scheduler.state_dict()
    return state


def _nest_for_layout(loaded: dict[Any, Any], trainable: TrainableModel) -> dict[Any, Any]:
    """Megatron has one optimizer without expert parallelism, two (dense, expert) with it; common.pt nests accordingly.

    The moments are layout-free (`fully_reshardable`); only the parameter groups' settings need nesting anew.
    """
    optimizers = getattr(trainable.optimizer, "chained_optimizers", [trainable.optimizer])
    saved = [loaded[key]["optimizer"] for key in (0, 1) if "optimizer" in loaded.get(key, {})]
    saved = saved or [loaded["optimizer"]]
    groups = [group for optimizer in saved for group in optimizer["param_groups"]]

    def of_kind(is_expert: bool) -> list[dict]:
        matching = [dict(group) for group in groups if group.get("is_expert_parallel", False) == is_expert]
        others = [dict(group, is_expert_parallel=is_expert) for group in groups]
        return matching or others

    sharding_type = loaded.get("param_state_sharding_type")
    if len(optimizers) == 1 and "optimizer" not in loaded:
        nested = {key: value for key, value in loaded.items() if key not in (0, 1)}
        nested["optimizer"] = {"param_groups": of_kind(False) + of_kind(True)}
        nested.setdefault("param_state_sharding_type", loaded[0].get("param_state_sharding_type"))
        return nested
    if len(optimizers) == 2 and "optimizer" in loaded:
        for key in ("optimizer", "param_state_sharding_type", "param_state"):
            loaded.pop(key, None)
        for key in (0, 1):
            loaded[key].setdefault("optimizer", {"param_groups": of_kind(bool(key))})
            loaded[key].setdefault("param_state_sharding_type", sharding_type)
    return loaded
