"""Several JSONL files of rows as one, for a model that learns several tasks at once.  Pictures stay where they are."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import DataError

ONE_PATH, MANY_PATHS = ("image", "video"), ("images", "videos")


def join_rows(files: Sequence[Path], out: Path) -> int:
    """Writes all rows of `files` to `out`, file after file, and returns their number; `out` is whole or absent.

    An id gets its file's number in front, since files may use one id each for another row; relative paths of pictures
    and videos are made relative to the folder of `out`.
    Raises DataError: `out` exists, a file does not, or a line that is not a JSON object.
    """
    if out.exists():
        raise DataError(f"{out} already exists", remedy="choose another file, or delete it first")
    lines = [
        json.dumps(_moved(row, number, Path(os.path.relpath(file.parent, out.parent))), ensure_ascii=False) + "\n"
        for number, file in enumerate(files)
        for row in _rows(file)
    ]
    unfinished = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.rename(out)
    return len(lines)


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise DataError("a file of rows does not exist", got=file)
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}, is not a JSON object", got=line[:80])
        rows.append(row)
    return rows


def _moved(row: dict[str, Any], number: int, folder: Path) -> dict[str, Any]:
    moved = dict(row)
    if "id" in row:
        moved["id"] = f"{number}-{row['id']}"
    moved |= {key: str(folder / row[key]) for key in ONE_PATH if isinstance(row.get(key), str)}
    moved |= {key: [str(folder / path) for path in row[key]] for key in MANY_PATHS if _is_texts(row.get(key))}
    return moved


def _is_texts(value: object) -> bool:
    # A video may be a list of frames; what is neither is left for the reader to complain about.
    return isinstance(value, list) and all(isinstance(path, str) for path in value)
