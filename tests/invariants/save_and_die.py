"""A process that saves a checkpoint and dies in the middle; a module of its own, because each process imports it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config.schema import OptimizerConfig, ParallelConfig
from megatron_moe_grpo.mcore.checkpoint_saver import CheckpointSaver
from megatron_moe_grpo.mcore.optimizer import make_trainable
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.hf_folder import read_hf_config

DIED = 77
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def save_and_die(run: Path, assets: Path, step: int, die_before: int | None) -> None:
    """Saves, and deletes the checkpoint before that one; dies before its change of that number.

    Without a number it counts them, into `run`.changes.
    """
    changes: list[str] = []

    def on_change() -> None:
        if len(changes) == die_before:
            os._exit(DIED)
        changes.append("")

    parallel = ParallelConfig()
    start_parallel(parallel, seed=0)
    model = build_model(read_hf_config(assets), parallel, "fp32")
    trainable = make_trainable(model, OptimizerConfig(), total_steps=1)
    saver = CheckpointSaver(run, keep=1, keep_best=0, in_background=False, last_step=None)
    _watch_changes(run, on_change)
    saver.save(step, trainable, assets, {"step": step})
    count = len(changes)
    stop_parallel()
    run.with_suffix(".changes").write_text(str(count))


def _watch_changes(folder: Path, on_change: Callable[[], None]) -> None:
    """Calls it before each change: a file below `folder` opened for writing, anything made, renamed or deleted."""
    prefix = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        # While a tree is deleted, names are relative to an open folder.
        if event in CHANGES or (is_written and str(arguments[0]).startswith(prefix)):
            on_change()

    sys.addaudithook(hook)
