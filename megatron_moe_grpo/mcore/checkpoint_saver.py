"""The checkpoints of a run, saved one after the other, in the foreground or beside training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.mcore.checkpoint import sharded_state
from megatron_moe_grpo.mcore.checkpoint_folders import remove_old_checkpoints, step_folder
from megatron_moe_grpo.mcore.checkpoint_save import CheckpointSave, RankFiles, finish_together, written
from megatron_moe_grpo.mcore.forked_result import ForkedResult
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import on_main_rank
from megatron_moe_grpo.mcore.transformer_config import building_device


class CheckpointSaver:
    """All ranks call each of its methods together.

    A failure beside training is raised by the next call that finds it, on all ranks: `advance`, `save` or `wait`.
    """

    def __init__(self, folder: Path, keep: int, keep_best: int, in_background: bool, last_step: int | None):
        """
        Args:
            keep: newest checkpoints that stay.
            keep_best: checkpoints that stay besides, see `remove_old_checkpoints`.
            last_step: the step that the run was resumed from.
        """
        self._folder, self._keep, self._keep_best = folder, keep, keep_best
        self._in_background, self._last_step = in_background, last_step
        self.on_saved: Callable[[int], None] = lambda step: None
        """Told the step of each checkpoint that has its name, on every rank."""
        self._running: tuple[int, CheckpointSave, ForkedResult[RankFiles]] | None = None

    def save(self, step: int, trainable: TrainableModel, assets: Path, state: dict[str, Any]) -> None:
        """Saves the state after `step` steps; does nothing if that is the state that was saved last.

        In the background it returns when memory is copied.  An earlier save is waited for.
        """
        self.wait()
        if step == self._last_step:
            return
        self._last_step = step
        sharded = sharded_state(trainable.module, trainable, is_loading=False)
        save = CheckpointSave(step_folder(self._folder, step), sharded, assets, state)
        if self._in_background:
            self._running = step, save, ForkedResult(save.write)
        else:
            self._finish(step, save, written(save))

    def advance(self) -> None:
        """Finishes a save of the background if all ranks have written; never waits for one."""
        if self._running is None:
            return
        _, _, outcome = self._running
        is_there = torch.tensor(float(outcome.is_there()), device=building_device())
        dist.all_reduce(is_there, op=dist.ReduceOp.MIN)
        if is_there > 0:
            self.wait()

    def wait(self) -> None:
        """Returns when the last checkpoint has its name."""
        if self._running is not None:
            (step, save, outcome), self._running = self._running, None
            self._finish(step, save, outcome.take())

    def _finish(self, step: int, save: CheckpointSave, outcome: RankFiles | MoeGrpoError) -> None:
        finish_together(save, outcome)
        self.on_saved(step)
        on_main_rank(lambda: remove_old_checkpoints(self._folder, self._keep, self._keep_best))
