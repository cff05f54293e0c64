"""Where in a downloaded folder its annotations and its videos are."""

from collections.abc import Sequence
from pathlib import Path

from megatron_moe_grpo.data.files.saved_dataset import HUB_PREFIX
from megatron_moe_grpo.errors import DataError


def find_annotations(path: Path, candidates: Sequence[str]) -> Path:
    """`path` itself if it is a table or a name of the hub, else the first of `candidates` (paths in it) that is there.

    Raises DataError: none is.
    """
    if _is_table(path):
        return path
    for candidate in candidates:
        if (path / candidate).exists():
            return path / candidate
    raise DataError(f"{path} does not hold the benchmark's annotations", expected=f"one of {', '.join(candidates)}")


def find_root(path: Path, image_root: Path | None, candidates: Sequence[str]) -> Path:
    """The folder of the videos: `image_root`, or the first of `candidates` that is a folder beside the annotations.

    The folder itself where none is: then every video is missing, and says where it was looked for.
    """
    folder = path.parent if _is_table(path) else path
    if image_root is not None:
        return image_root
    return next((folder / candidate for candidate in candidates if (folder / candidate).is_dir()), folder)


def _is_table(path: Path) -> bool:
    return path.is_file() or (path / "state.json").is_file() or str(path).startswith(HUB_PREFIX)


def task_files(folder: Path, tasks: Sequence[str]) -> list[Path]:
    """`TASK.json` of every task.  Raises DataError: one is not there, so a mean over tasks would be another one."""
    files = [folder / f"{task}.json" for task in tasks]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{folder} does not hold all of the benchmark's tasks",
            got=f"{len(missing)} of {len(tasks)} missing: {', '.join(missing)}",
            remedy="download the rest: the score is a mean over all tasks",
        )
    return files
