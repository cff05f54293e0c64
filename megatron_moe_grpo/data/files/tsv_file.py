"""Tab-separated files as pandas writes them: a header, cells quoted where they hold tabs, quotes or line breaks."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from megatron_moe_grpo.data.embedded_image import MAX_IMAGE_BYTES
from megatron_moe_grpo.data.files.raw_rows import RawRows
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.errors import DataError

# A picture in base64.
MAX_CELL_CHARACTERS = MAX_IMAGE_BYTES * 4 // 3 + 4
# VLMEvalKit: an image cell of at most so many characters is the index of the row that holds the picture.
MAX_REFERENCE_CHARACTERS = 64


def tsv_rows(source: Path) -> RawRows:
    """Rows as {column: text}; empty cells are left out, an `image` that names another row's index becomes its picture.

    Raises DataError: no header, twin columns, quotes that do not close (the rest of the file cannot be trusted); in the
    row's reader: another number of cells than the header, text that is not UTF-8, a reference to no picture.
    """
    pictures = _referenced_pictures(source)
    lines = _cells(source)
    _, header = next(lines, (1, []))
    for line_number, cells in lines:
        place = RowPlace(str(source), line_number)
        yield line_number, partial(_row, header, cells, pictures, place)


def _referenced_pictures(source: Path) -> dict[str, str]:
    """Index -> base64 of the rows that other rows refer to; they may stand before or after those."""
    lines = _cells(source)
    _, header = next(lines, (1, []))
    _refuse_header(header, source)
    if "index" not in header or "image" not in header:
        return {}
    index, image = header.index("index"), header.index("image")

    def is_whole(cells: Sequence[str]) -> bool:
        return len(cells) == len(header)

    wanted = {cells[image] for _, cells in lines if is_whole(cells) and _is_reference(cells[image])}
    if not wanted:
        return {}
    # A second pass: only pictures that are needed twice are held in memory.
    found = (cells for _, cells in _cells(source) if is_whole(cells) and cells[index] in wanted)
    return {cells[index]: cells[image] for cells in found if not _is_reference(cells[image])}


def _is_reference(cell: str) -> bool:
    return 0 < len(cell) <= MAX_REFERENCE_CHARACTERS


def _row(header: Sequence[str], cells: Sequence[str], pictures: dict[str, str], place: RowPlace) -> dict[str, str]:
    if len(cells) != len(header):
        raise place.problem(
            "row",
            "not as many cells as the header has columns",
            got=len(cells),
            expected=len(header),
            remedy='a cell with tabs or line breaks stands in quotes: "..."',
        )
    row = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
    for name, cell in row.items():
        if any("\udc80" <= character <= "\udcff" for character in cell):
            raise place.problem(name, "text that is not UTF-8", got=shown(cell))
    image = row.get("image", "")
    if _is_reference(image) and "index" in row:
        if image not in pictures:
            raise place.problem(
                "image",
                "neither a picture in base64 nor the index of a row that holds one",
                got=shown(image),
                expected=f"base64, or (up to {MAX_REFERENCE_CHARACTERS} characters) another row's index",
            )
        row["image"] = pictures[image]
    return row


def _cells(source: Path) -> Iterator[tuple[int, list[str]]]:
    """(line that the row begins at, its cells), the header first; blank lines are left out."""
    # newline="": csv itself ends rows at \n, \r\n or \r outside quotes.  A byte that is no UTF-8 spoils its row alone.
    with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter="\t", strict=True)
        while True:
            line_number = reader.line_num + 1
            # The limit belongs to the process; it is ours only while this row is read.
            limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise RowPlace(str(source), line_number).problem(
                    "row",
                    "quotes or a cell that cannot be read; what follows is not read either",
                    got=str(error),
                    expected='cells with quotes, tabs or line breaks in quotes, and quotes doubled: "say ""hi"""',
                ) from error
            finally:
                csv.field_size_limit(limit)
            if any(cells):
                yield line_number, cells


def _refuse_header(header: Sequence[str], source: Path) -> None:
    twins = sorted({name for name in header if header.count(name) > 1})
    if len(header) < 2 or twins:
        raise DataError(
            f"{source} has no header of different column names",
            got=shown(list(header)),
            expected="a first line like index<TAB>image<TAB>question<TAB>A<TAB>B<TAB>answer",
        )
