"""The files that a run leaves behind, read back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import DataError

NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, numbers that are not finite as floats; none where there is no file.

    Raises DataError for a damaged line.
    """
    return [_with_numbers(line) for line in read_json_lines(run_folder / "metrics.jsonl")]


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, none where there is no file; a torn last line is one still being written."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}, line {number}, is damaged",
                got=line[:80],
                expected="one JSON object",
                remedy=f"delete that line of {path}",
            ) from error


def _with_numbers(value: Any) -> Any:
    """NaN and infinities, which JSON only has as strings, as floats again."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in NOT_FINITE else value
