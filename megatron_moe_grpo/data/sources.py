"""Files of rows -> checked rows.  One bad row is named, or skipped and counted; it never changes another.

`files/` reads each kind of file, `layouts/` knows whose columns a row has, `schema.py` checks it.  `datasets` takes
over behind the checks: `rows_to_dataset` makes an Arrow table of fixed types for its indexing, mapping and saving.
Nothing but a name that begins with "hub:" touches the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets

from megatron_moe_grpo.config.schema import DataFormat
from megatron_moe_grpo.data.files.opened import raw_rows
from megatron_moe_grpo.data.layouts.detected import to_own_columns
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.schema import Row, parse_row, read_row_id
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, VisualFiles, read_visual
from megatron_moe_grpo.errors import DataError

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("id", "problem", "solution", "problem_type", "rationale")}
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
    source: Path | str,
    image_root: Path | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    check_images: bool = True,
    known_problem: Callable[[Row], str | None] | None = None,
    video_frames: int = VIDEO_FRAMES,
    data_format: DataFormat = "auto",
) -> LoadedRows:
    """Reads and checks the rows of a file, a folder or a name of the hub (`files/opened.py`).

    Args:
        image_root: folder that image paths start from and may not leave; None: the folder of `source`.
        on_bad_row: `error` raises at the first bad row, `skip` lists it in the result.
        check_images: decode every picture and video once now, not in the middle of training.
        known_problem: one more test of a parsed row, for what only the caller knows (say, its length in tokens): what
            is wrong with it, or None.  It may raise DataError instead.
        video_frames: frames of a video that are decoded by that check, at most.
        data_format: kind of file, where its name does not tell (`data.format`).
    Raises:
        DataError: names file, line, id and field; a file without a single good row raises under both policies.
    """
    # Of a name of the hub this is no folder: its rows hold their pictures, or data.image_root says where they are.
    image_root = Path(source).parent if image_root is None else image_root
    seen_ids: dict[str, int] = {}
    checked: set[VisualFiles] = set()
    rows: list[Row] = []
    skipped: list[SkippedRow] = []
    for line_number, read_raw in raw_rows(str(source), data_format):
        row_id = None
        try:
            raw = to_own_columns(read_raw(), RowPlace(str(source), line_number))
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
    """An Arrow table of fixed types; image paths are relative to `image_root`, so both can be moved together.

    Raises ValueError: a picture that came inside its row, so that it lies in the image cache and not there.
    """
    root = image_root.resolve()
    records = [
        {
            "id": row.id,
            "problem": row.problem,
            "solution": row.solution,
            "problem_type": row.problem_type,
            "rationale": row.rationale,
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
