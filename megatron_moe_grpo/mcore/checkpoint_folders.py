"""Which folders of a run are checkpoints, which of them stay, and what becomes of a damaged one."""

import json
import os
import shutil
from pathlib import Path

UNFINISHED, DAMAGED = ".unfinished", ".damaged"
STATE, ACCURACY = "state.json", "eval_accuracy"


def step_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands; names sort by step."""
    return parent / f"step_{step:08d}"


def complete_checkpoints(parent: Path) -> list[Path]:
    """The checkpoints that got their name, the newest first."""
    return sorted((folder for folder in parent.glob("step_*") if not folder.suffix), reverse=True)


def newest_checkpoint(parent: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next(iter(complete_checkpoints(parent)), None)


def remove_old_checkpoints(parent: Path, keep: int, keep_best: int = 0) -> None:
    """Deletes what is neither among the newest `keep` nor among the `keep_best` with the highest held-out accuracy.

    Of two equal ones the earlier is better; one that was not evaluated is never among the best.  What a killed process
    left unfinished goes too, so call it while no save is under way.
    A folder loses its name first, so that half of one is never taken for whole.
    """
    complete = complete_checkpoints(parent)
    accuracies = {folder: accuracy for folder in complete if (accuracy := _accuracy_of(folder)) is not None}
    best = sorted(accuracies, key=lambda folder: (-accuracies[folder], folder))[:keep_best]
    for unfinished in parent.glob(f"step_*{UNFINISHED}"):
        shutil.rmtree(unfinished)
    for folder in complete[keep:]:
        if folder not in best:
            nameless = folder.with_suffix(UNFINISHED)
            os.rename(folder, nameless)
            shutil.rmtree(nameless)


def set_aside(damaged: Path) -> Path:
    """Renames a checkpoint that cannot be loaded, so that it is neither tried again nor lost; returns where it is."""
    names = (damaged.with_suffix(f"{DAMAGED}{number}") for number in ("", *(f"_{again}" for again in range(2, 1000))))
    free = next(name for name in names if not name.exists())
    os.rename(damaged, free)
    return free


def _accuracy_of(folder: Path) -> float | None:
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8")).get(ACCURACY)
    except (OSError, ValueError):
        # Damaged: found out, and said, when it is loaded.
        return None
