"""What a run knows besides its weights, and where it goes on: from its newest checkpoint that is whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_moe_grpo.errors import CheckpointError, DamagedCheckpointError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.checkpoint_folders import ACCURACY, complete_checkpoints, set_aside
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import on_main_rank
from megatron_moe_grpo.routing.guidance import ModalityCounts
from megatron_moe_grpo.training.kl_control import KlControl
from megatron_moe_grpo.training.update_guard import UpdateGuard


@dataclass
class RunState:
    """What changes from step to step and is no tensor of model or optimizer: a checkpoint's state.json."""

    seed: int
    counts: ModalityCounts | None
    kl: KlControl | None
    guard: UpdateGuard
    accuracy: float | None = None
    """Held-out accuracy of the weights as they are; None when they have changed since, or were never asked."""

    def values(self, done: int) -> dict[str, Any]:
        """What is saved after `done` steps, as JSON values."""
        values: dict[str, Any] = {"step": done, "seed": self.seed, "guard": self.guard.state()}
        if self.counts is not None:
            values["modality_counts"] = {name: tensor.tolist() for name, tensor in self.counts.state_dict().items()}
        if self.kl is not None:
            values["kl_beta"] = self.kl.state()
        if self.accuracy is not None:
            values[ACCURACY] = self.accuracy
        return values

    def restore(self, values: dict[str, Any]) -> None:
        """Takes over what was saved."""
        if self.counts is not None:
            saved = values["modality_counts"]
            self.counts.load_state_dict({name: torch.tensor(rows, dtype=torch.float64) for name, rows in saved.items()})
        if self.kl is not None:
            self.kl.restore(values["kl_beta"])
        # Checkpoints of earlier versions have none.
        self.guard.restore(values.get("guard", {}))
        self.accuracy = values.get(ACCURACY)


def load_start(source: Path, checkpoints: Path, trainable: TrainableModel, state: RunState) -> dict[str, Any]:
    """Fills model, optimizer and `state` from the newest whole checkpoint; returns its state.json.

    A newer one that is damaged is renamed and named, with what is wrong.  A run without checkpoints starts from
    `source`, the folder of model.checkpoint: returns {}.

    Raises:
        CheckpointError: no checkpoint of the run is whole; one holds what training does not write; another model.
    """
    damaged: list[tuple[Path, DamagedCheckpointError]] = []
    for checkpoint in on_main_rank(lambda: complete_checkpoints(checkpoints)):
        try:
            values = load_checkpoint(checkpoint, trainable.module, trainable)
        except DamagedCheckpointError as error:
            damaged.append((checkpoint, error))
            continue
        state.restore(values)
        on_main_rank(lambda: _set_aside(damaged, values["step"]))  # noqa: B023
        return values
    if damaged:
        raise CheckpointError(
            "no checkpoint of this run is whole",
            got="\n".join(str(error) for _, error in damaged),
            remedy=f"put one back, or remove {checkpoints} to start the run over",
        )
    load_checkpoint(source, trainable.module)
    trainable.optimizer.reload_model_params()
    return {}


def _set_aside(damaged: Sequence[tuple[Path, DamagedCheckpointError]], step: int) -> None:
    for checkpoint, error in damaged:
        print(f"{checkpoint.name} is damaged and was renamed to {set_aside(checkpoint).name}:\n{error}")
    if damaged:
        print(f"going on from step {step}; what was logged after it is written anew", flush=True)
