"""The folder of one run, and the check that a resumed run is the same run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import ConfigError

# A layout alters no number beyond rounding, and checkpoints load under any.  Stability: a run that stopped over spikes
# must be able to go on with another bound.  Logging alters nothing: a slow run can be stopped and go on with a profile.
MAY_CHANGE = ("parallel.", "stability", "logging.")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @classmethod
    def open(cls, root: Path, config_yaml: str) -> "RunFolder":
        """Creates `root` (usually runs/<name>) with its config.yaml, or finds it with the same one: a resume.

        Call it on one rank, before the others look at the folder.  Configs are compared as trees, not as text, and
        `parallel`, `stability` and `logging` are not compared: a run may go on under another layout, past what stopped
        it, and followed in another way.
        A run that stopped before its first line has nothing to resume: it takes any config, so that a mistake found
        by the checks at the start can be put right in the config.
        Raises ConfigError for a folder of another config, or one with other things in it; it changes nothing then.
        """
        folder = cls(Path(root))
        if folder.config.is_file() and (folder.metrics.exists() or folder.checkpoints.exists()):
            found = yaml.safe_load(folder.config.read_text("utf-8"))
            _check_same_config(folder.root, found, config_yaml)
            if found != yaml.safe_load(config_yaml):
                write_atomically(folder.config, config_yaml)
            return folder
        is_ours = folder.config.is_file()
        if not is_ours and folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
            raise ConfigError(
                "the output folder exists and is not a run folder (no config.yaml in it)",
                got=folder.root,
                remedy="choose another one with --set name=... or --set output_dir=...",
            )
        folder.root.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config, config_yaml)
        return folder

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.root / "timing.jsonl"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def bad_rows(self) -> Path:
        return self.root / "bad_rows.jsonl"

    @property
    def bad_batch(self) -> Path:
        return self.root / "bad_batch"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        return self.root / "profile"


def _check_same_config(root: Path, found: Any, config_yaml: str) -> None:
    wanted = yaml.safe_load(config_yaml)
    changes = [change for change in _changed_keys(found, wanted) if not change.startswith(MAY_CHANGE)]
    if not changes:
        return
    raise ConfigError(
        "an output folder of another config",
        got=f"{root}, where\n" + "\n".join(f"              {change}" for change in changes),
        expected="the config that this folder was made with, to resume it",
        remedy="undo the change to resume, or start a new run with --set name=... (nothing was overwritten)",
    )


def _changed_keys(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(key for key in wanted if key not in found)]:
            dotted = f"{name}.{key}" if name else str(key)
            if key not in wanted:
                yield f"{dotted} was {found[key]!r} and is no key now"
            elif key not in found:
                yield f"{dotted} was no key and is {wanted[key]!r} now"
            else:
                yield from _changed_keys(found[key], wanted[key], dotted)
    elif found != wanted:
        yield f"{name or 'the file'} was {found!r} and is {wanted!r} now"
