"""What is analysed: a run's newest checkpoint or a checkpoint by itself, on which rows, and under which settings."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moe_grpo.config.load import load_config
from megatron_moe_grpo.config.schema import RewardConfig, RoutingConfig, RunConfig
from megatron_moe_grpo.errors import CheckpointError, ConfigError
from megatron_moe_grpo.mcore.checkpoint_folders import STATE, newest_checkpoint
from megatron_moe_grpo.routing.guidance import ModalityCounts

# A checkpoint by itself names no way to explore: K experts without replacement, every expert open.
PLAIN_ROUTING = RoutingConfig(guidance="multinomial")


@dataclass(frozen=True)
class AnalysisSource:
    """A checkpoint, and what is known of the run that wrote it."""

    checkpoint: Path
    run_folder: Path | None
    config: RunConfig | None

    @property
    def routing(self) -> RoutingConfig:
        """How routes are sampled: as the run explored; a run that did not explore takes `PLAIN_ROUTING`.

        Expert Choice and Sinkhorn assign whole micro-batches and cannot be sampled token by token.
        """
        if self.config is None or self.config.routing.guidance == "none":
            return PLAIN_ROUTING
        return self.config.routing.model_copy(update={"assignment": "policy"})

    @property
    def reward(self) -> RewardConfig:
        """How answers are judged."""
        return RewardConfig() if self.config is None else self.config.reward

    @property
    def step(self) -> int:
        """Training steps behind the checkpoint; 0 for an imported one."""
        return self._state()["step"]

    def rows_file(self, data: Path | None) -> Path:
        """`data`, or the run's held-out rows.  Raises ConfigError where neither is there."""
        named = None if self.config is None else self.config.data.evaluation
        chosen = data or (None if named is None else Path(named))
        if chosen is None:
            raise ConfigError("nothing says which rows to analyse", remedy="name a file of rows with --data")
        # A name of the hub is no file, and is looked up by the reader.
        if not chosen.exists() and not str(chosen).startswith("hub:"):
            raise ConfigError(
                "the rows to analyse are not there",
                got=chosen,
                remedy="start the command where the run was started (its paths are relative), or name them with --data",
            )
        return chosen

    def trained_counts(self) -> ModalityCounts | None:
        """The running counts that guided training; None for a checkpoint without any."""
        saved = self._state().get("modality_counts")
        if saved is None:
            return None
        vision_LN, text_LN = (torch.tensor(saved[name], dtype=torch.float64) for name in ("vision_LN", "text_LN"))
        counts = ModalityCounts(*vision_LN.shape, decay=self.routing.guidance_decay)
        counts.update(vision_LN, text_LN)
        return counts

    def _state(self) -> dict:
        return json.loads((self.checkpoint / STATE).read_text(encoding="utf-8"))


def find_source(path: Path) -> AnalysisSource:
    """The checkpoint behind `path`: a run folder's newest, or `path` itself.

    A checkpoint inside a run folder is analysed under that run's settings.

    Raises:
        ConfigError: neither a run folder nor a checkpoint.  CheckpointError: a run that has saved none yet.
    """
    if (path / "config.yaml").is_file():
        checkpoint = newest_checkpoint(path / "checkpoints")
        if checkpoint is None:
            raise CheckpointError("this run has no checkpoint yet", got=path, remedy="wait for training.save_every")
        return AnalysisSource(checkpoint, path, load_config(path / "config.yaml"))
    if (path / "assets").is_dir() and (path / STATE).is_file():
        run_folder = path.resolve().parent.parent
        if path.resolve().parent.name == "checkpoints" and (run_folder / "config.yaml").is_file():
            return AnalysisSource(path, run_folder, load_config(run_folder / "config.yaml"))
        return AnalysisSource(path, None, None)
    raise ConfigError(
        "neither a run folder nor a Megatron checkpoint",
        got=path,
        expected="runs/NAME, or a folder such as runs/NAME/checkpoints/step_00000300",
        remedy="a Hugging Face folder becomes a checkpoint with `import`",
    )
