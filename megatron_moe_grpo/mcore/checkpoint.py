"""Checkpoints: Megatron's distributed format, loadable under any parallel layout, complete or not there at all.

step_00000100/
    weights/        model and optimizer, Megatron `torch_dist` shards
    assets/         config.json, tokenizer and processor files of the Hugging Face model
    state.json      step, seeds, guidance counts: what is not a tensor of the model
    manifest.json   SHA-256 of every file; written last, before the folder gets its name
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_moe_grpo.conversion.manifest import verify_share
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.agreement import on_all_ranks
from megatron_moe_grpo.mcore.checkpoint_folders import STATE
from megatron_moe_grpo.mcore.checkpoint_save import CheckpointSave, finish_together, written
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.pickle_allow_list import refuse_unsafe_pickles
from megatron_moe_grpo.mcore.shard_plan import checkpoint_metadata
from megatron_moe_grpo.mcore.shard_reader import WEIGHTS


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    assets: Path,
    state: dict[str, Any],
    trainable: TrainableModel | None = None,
) -> None:
    """Writes `folder`, which must not exist, from all ranks; it appears whole or not at all.

    Without `trainable`: weights only.  Raises CheckpointError, on all ranks, where the disk cannot take it.
    """
    save = CheckpointSave(folder, sharded_state(model, trainable, is_loading=False), assets, state)
    finish_together(save, written(save))


def load_checkpoint(folder: Path, model: torch.nn.Module, trainable: TrainableModel | None = None) -> dict[str, Any]:
    """Fills `model` (and the optimizer, with `trainable`) from `folder` under this run's layout; returns state.json.

    Raises, on every rank, before any weight is touched:
        DamagedCheckpointError: a file is missing or changed; it is enough that one rank finds it so.
        CheckpointError: a pickle names something that training does not write, or the checkpoint is of another model.
    """
    on_all_ranks(lambda: verify_share(folder, dist.get_rank(), dist.get_world_size()))
    # Not before the bytes are known to be whole: a torn pickle is damage, a whole one with other names is not.
    on_all_ranks(lambda: refuse_unsafe_pickles(folder / WEIGHTS))
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if trainable is not None and not state["has_optimizer"]:
        raise CheckpointError(
            f"{folder} holds no optimizer state",
            expected="a checkpoint that training wrote",
            remedy="start a new run from it with model.checkpoint instead of resuming",
        )
    sharded = sharded_state(model, trainable, is_loading=True)
    try:
        loaded = dist_checkpointing.load(sharded, str(folder / WEIGHTS))
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
        # Megatron adds the saved steps to those that this one has counted (0.16.1, optimizer_param_scheduler.py).
        trainable.scheduler.num_steps = 0
        trainable.scheduler.load_state_dict(loaded["scheduler"])
    return state


def sharded_state(model: torch.nn.Module, trainable: TrainableModel | None, *, is_loading: bool) -> dict[str, Any]:
    """What a checkpoint holds of model and optimizer, as Megatron describes it: by tensor, and by part of it."""
    metadata = checkpoint_metadata()
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
