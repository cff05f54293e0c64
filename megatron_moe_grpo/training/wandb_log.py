"""Weights & Biases: the same numbers as metrics.jsonl, in the logger people know."""

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wandb

from megatron_moe_grpo.config.schema import LoggingConfig
from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_log import RunLog, scalars
from megatron_moe_grpo.training.sample_table import COLUMNS, table_rows


class WandbLog(RunLog):
    """A W&B run inside the run folder, offline or online.

    What can be known at the start (no account, no network, an unwritable folder) raises ConfigError there.  A failure
    later never stops a training run, because metrics.jsonl has everything: it is printed once, nothing more is sent,
    and `finish` says it again.  The run id is kept in the folder, so a resumed run continues the same W&B run.  `step`
    is an axis of our own: W&B's step cannot go back, which a resume from an older checkpoint has to.
    """

    def __init__(self, folder: RunFolder, run_name: str, config: Mapping[str, Any], logging: LoggingConfig) -> None:
        self._failure: str | None = None
        try:
            self._run = wandb.init(
                project=logging.wandb_project,
                name=run_name,
                config=dict(config),
                dir=folder.root,
                mode=logging.wandb,
                id=_run_id(folder),
                resume="allow" if logging.wandb == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
            self._run.define_metric("*", step_metric="step")
        except (wandb.errors.Error, OSError) as error:
            raise ConfigError(
                f"Weights & Biases does not start in mode {logging.wandb!r}",
                got=f"{type(error).__name__}: {error}",
                remedy="run `wandb login`, or --set logging.wandb=offline (`wandb sync` sends it later), or disabled",
            ) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers and, as name/key, numbers in mappings; lists (expert counts) stay in metrics.jsonl."""
        self._send({"step": step, **dict(scalars(metrics))})

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        self._send({"step": step, **dict(scalars({"timing": timing}))})

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """A table with a line for each response."""
        if samples:
            self._attempt_while_whole(
                lambda: self._run.log({"step": step, "samples": wandb.Table([*COLUMNS], [*table_rows(samples)])})
            )

    def finish(self) -> None:
        self._attempt(self._run.finish)
        if self._failure is not None:
            print(f"Weights & Biases is incomplete: {self._failure}", file=sys.stderr, flush=True)

    def _send(self, values: dict[str, Any]) -> None:
        self._attempt_while_whole(lambda: self._run.log(values))

    def _attempt_while_whole(self, action: Callable[[], None]) -> None:
        if self._failure is None:
            self._attempt(action)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (wandb.errors.Error, OSError) as error:
            if self._failure is None:
                self._failure = f"{type(error).__name__}: {error}"
                print(
                    f"Weights & Biases stopped working ({self._failure}); training goes on, metrics.jsonl is complete",
                    file=sys.stderr,
                    flush=True,
                )


def _run_id(folder: RunFolder) -> str:
    path = folder.wandb / "run_id"
    if not path.is_file():
        folder.wandb.mkdir(exist_ok=True)
        write_atomically(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8")
