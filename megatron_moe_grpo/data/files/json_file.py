"""JSONL files and .json files of one list, parsed with `json`, not with `datasets.load_dataset("json")`.

Tried with datasets 5.2 on small files:
* one broken line (or duplicate key, or lone surrogate) fails the whole file; the row number stands in a chained
  exception and counts from the start of a block: nothing could be skipped or named;
* schema inference changes rows: options ["1", "2"] come back as numbers when another row holds [1, 2], and a column of
  texts that look like dates comes back as datetimes;
* an empty file ends in a bare StopIteration.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.files.raw_rows import RawRows
from megatron_moe_grpo.data.row_place import RowPlace, shown


def json_rows(source: Path) -> RawRows:
    """Rows of a .json file that holds one list, or of a file with one row a line.

    Raises DataError: a .json file that is no list; in the row's reader: its line is not one JSON object in UTF-8.
    """
    return _list_rows(source) if source.suffix == ".json" else _line_rows(source)


def _line_rows(source: Path) -> RawRows:
    with source.open("rb") as file:  # bytes: only \n ends a line, and a bad byte spoils one line, not the file
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                yield line_number, partial(_parse_row_line, line, RowPlace(str(source), line_number))


def _list_rows(source: Path) -> RawRows:
    place = RowPlace(str(source), 1)
    entries = _parse_json(source.read_bytes(), place)
    if not isinstance(entries, list):
        raise place.problem(
            "row",
            "a .json file must hold one list of rows",
            got=shown(entries),
            remedy="name a file with one row a line .jsonl",
        )
    for number, entry in enumerate(entries, start=1):
        yield number, partial(_as_row, entry, RowPlace(str(source), number))


def _parse_json(line: bytes, place: RowPlace) -> object:
    try:
        text = line.decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twin_keys)
    # ValueError: syntax, UTF-8, 5,000-digit numbers and the two refusals; RecursionError: 100,000 brackets
    except (ValueError, RecursionError) as error:
        raise place.problem(
            "row", "not valid JSON", got=f"{type(error).__name__}: {error}", expected="one JSON object a line, in UTF-8"
        ) from error


def _parse_row_line(line: bytes, place: RowPlace) -> dict[str, Any]:
    return _as_row(_parse_json(line, place), place)


def _as_row(value: object, place: RowPlace) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.problem(
            "row",
            "not a JSON object",
            got=shown(value),
            expected='{"id": ..., "problem": ..., ...}',
            remedy="a file that holds one list of rows must be named .json",
        )
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_twin_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return values
