"""Files of rows -> checked rows.  One bad row is named, or skipped and counted; it never changes another.

Lines are parsed here with `json`, not with `datasets.load_dataset("json")`.  Tried with datasets 5.2 on small files:
* one broken line (or duplicate key, or lone surrogate) fails the whole file; the row number stands in a chained
  exception and counts from the start of a block: nothing could be skipped or named;
* schema inference changes rows: options ["1", "2"] come back as numbers when another row holds [1, 2], and a column of
  texts that look like dates comes back as datetimes;
* an empty file ends in a bare StopIteration.
`datasets` takes over behind the checks: `rows_to_dataset` makes an Arrow table of fixed types for its indexing, mapping
and saving, and `load_rows` reads a folder written by `save_to_disk`.  Neither touches the network.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.schema import Row, parse_row, read_row_id
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, VisualFiles, read_visual
from megatron_moe_grpo.errors import DataError

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("id", "problem", "solution", "problem_type")}
    | {name: datasets.List(datasets.Value("string")) for name in ("options", "images")}
    | {"videos": datasets.List(datasets.List(datasets.Value("string")))}
)


@dataclass(frozen=True)
class SkippedRow:
    """A bad row that was left out."""

    line: int
    id: str | None
    reason: str


@dataclass(frozen=True)
class LoadedRows:
    """The good rows in file order, and the bad ones."""

    rows: tuple[Row, ...]
    skipped: tuple[SkippedRow, ...]


def load_rows(
    source: Path,
    image_root: Path | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    check_images: bool = True,
    known_problem: Callable[[Row], str | None] | None = None,
    video_frames: int = VIDEO_FRAMES,
) -> LoadedRows:
    """Reads a JSONL file, a .json file with one list, or a folder written by `datasets`' save_to_disk.

    Args:
        image_root: folder that image paths start from and may not leave; None: the folder of `source`.
        on_bad_row: `error` raises at the first bad row, `skip` lists it in the result.
        check_images: decode every picture and video once now, not in the middle of training.
        known_problem: one more test of a parsed row, for what only the caller knows (say, its length in tokens): what
            is wrong with it, or None.  It may raise DataError instead.
        video_frames: frames of a video that are decoded by that check, at most.
    Raises:
        DataError: names file, line, id and field; a file without a single good row raises under both policies.
    """
    image_root = source.parent if image_root is None else image_root
    seen_ids: dict[str, int] = {}
    checked: set[VisualFiles] = set()
    rows: list[Row] = []
    skipped: list[SkippedRow] = []
    for line_number, read_raw in _raw_rows(source):
        row_id = None
        try:
            raw = read_raw()
            row_id = read_row_id(raw, line_number, str(source))
            row = parse_row(raw, line_number, str(source), image_root)
            place = RowPlace(str(source), line_number, row_id)
            _refuse_duplicate(row, seen_ids, place)
            if check_images:
                _check_visuals(row, checked, video_frames, place)
            _refuse_known_problem(row, known_problem, place)
        except DataError as error:
            if on_bad_row == "error":
                raise
            skipped.append(SkippedRow(line_number, row_id, str(error)))
            continue
        seen_ids[row.id] = line_number
        rows.append(row)
    if not rows:
        first = skipped[0].reason if skipped else "no rows"
        raise DataError(f"{source} has no usable row", got=f"{len(skipped)} bad rows; the first: {first}")
    return LoadedRows(tuple(rows), tuple(skipped))


def rows_to_dataset(rows: Sequence[Row], image_root: Path) -> datasets.Dataset:
    """An Arrow table of fixed types; image paths are relative to `image_root`, so both can be moved together."""
    root = image_root.resolve()
    records = [
        {
            "id": row.id,
            "problem": row.problem,
            "solution": row.solution,
            "problem_type": row.problem_type,
            "options": list(row.options),
            "images": [texts[0] for texts in _path_texts(row, root, is_video=False)],
            "videos": _path_texts(row, root, is_video=True),
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(records, features=FEATURES)


def _path_texts(row: Row, root: Path, is_video: bool) -> list[list[str]]:
    """Paths of each visual of one kind; reading order within a kind is all that the tags need."""
    of_kind = [files for files in row.visuals if files.is_video == is_video]
    return [[str(path.relative_to(root)) for path in files.paths] for files in of_kind]


RawRows = Iterator[tuple[int, Callable[[], dict[str, Any]]]]


def _raw_rows(source: Path) -> RawRows:
    """(line number, function that returns the raw row or raises DataError), so that one bad line ends nothing."""
    if source.is_dir():
        return _saved_rows(source)
    if not source.is_file():
        raise DataError(
            f"the data file {source} does not exist",
            expected="a .jsonl or .json file, or a folder from save_to_disk",
            remedy="for a hub dataset: datasets.load_dataset(NAME, split=...).save_to_disk(FOLDER), then give FOLDER",
        )
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


def _saved_rows(folder: Path) -> RawRows:
    if not (folder / "state.json").is_file():
        raise DataError(
            f"{folder} is not a folder written by Dataset.save_to_disk",
            expected="state.json in it",
            remedy="save one split: dataset['train'].save_to_disk(FOLDER)",
        )
    # A column of pictures stays {bytes, path}, which the row reader refuses by name, instead of being decoded here.
    table = datasets.load_from_disk(str(folder))
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    for index in range(len(table)):
        yield index + 1, partial(table.__getitem__, index)


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


def _refuse_duplicate(row: Row, seen_ids: dict[str, int], place: RowPlace) -> None:
    if row.id in seen_ids:
        raise place.problem(
            "id", "the id stands twice", got=shown(row.id), expected=f"an id unlike that of line {seen_ids[row.id]}"
        )


def _check_visuals(row: Row, checked: set[VisualFiles], video_frames: int, place: RowPlace) -> None:
    for files in row.visuals:
        if files in checked:
            continue
        try:
            read_visual(files, video_frames)
        except DataError as error:
            raise place.problem(
                "video" if files.is_video else "image",
                error.what,
                got=error.got,
                expected=error.expected,
                remedy=error.remedy,
            ) from error
        checked.add(files)


def _refuse_known_problem(row: Row, known_problem: Callable[[Row], str | None] | None, place: RowPlace) -> None:
    reason = known_problem(row) if known_problem is not None else None
    if reason is not None:
        raise place.problem("row", reason)
