"""The video of a benchmark's row: a file, part of one, or a folder of frames."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.visual_paths import resolve_visual_path
from megatron_moe_grpo.data.visuals import VisualFiles

FRAME_SUFFIXES = (".jpg", ".png")


@dataclass(frozen=True)
class FoundVideo:
    """The visual, or the name of what is missing."""

    visuals: tuple[VisualFiles, ...] = ()
    missing_file: str | None = None


def find_video(
    names: Sequence[str], root: Path, place: RowPlace, seconds: tuple[float, float] | None = None
) -> FoundVideo:
    """The first of `names` (paths under `root`) that is there; `seconds`: only from when to when it is shown.

    Raises DataError: a path that leaves the root, or not a file.
    """
    for name in names:
        if os.path.exists(root / name):  # of a name with NUL or too long, it says no
            return FoundVideo((VisualFiles((resolve_visual_path(name, root, place, "video"),), True, seconds),))
    return FoundVideo(missing_file=names[0])


def find_frames(
    name: str, root: Path, place: RowPlace, frames_per_second: float, seconds: tuple[float, float] | None
) -> FoundVideo:
    """The frames of the folder `name`, named by number from 1, between `seconds`.

    Raises DataError: a folder without frames, or with none in that time.
    """
    if not os.path.isdir(root / name):
        return FoundVideo(missing_file=name)
    files = sorted(entry.name for entry in (root / name).iterdir() if entry.suffix.lower() in FRAME_SUFFIXES)
    if seconds is not None:
        # MVBench's own reader: frame round(t * 3) is shown at second t, and both ends are seen.
        first, last = (round(second * frames_per_second) for second in seconds)
        files = files[max(1, first) - 1 : max(1, last)]
    if not files:
        raise place.problem("video", "no frames", got=shown(name), expected=f"pictures in {root / name}")
    paths = tuple(resolve_visual_path(f"{name}/{file}", root, place, "video") for file in files)
    return FoundVideo((VisualFiles(paths, True),))
