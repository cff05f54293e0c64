import base64
import csv
from pathlib import Path

import pytest
from embedded_pictures import picture_bytes

from megatron_moe_grpo.data.embedded_image import store_image
from megatron_moe_grpo.data.files import tsv_file
from megatron_moe_grpo.data.files.tsv_file import tsv_rows
from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("test", 1)
PICTURES = [picture_bytes(grey, size=(9, 9)) for grey in (50, 150)]
BASE64 = [base64.b64encode(picture).decode() for picture in PICTURES]
HEADER = ["index", "image", "question", "hint", "A", "B", "C", "D", "answer", "category"]


def row(index: int, image: str, **change: str) -> dict[str, str]:
    cells = {"index": str(index), "image": image, "question": "Which?", "A": "x", "B": "y", "answer": "B"}
    return cells | {"category": "logic"} | change


def write(folder: Path, *rows: dict[str, str], end: str = "\n") -> Path:
    """As pandas' to_csv(sep="\\t") writes, whose quoting is the csv module's own."""
    file = folder / "bench.tsv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, HEADER, delimiter="\t", lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_mmbench_rows_read_as_pandas_writes_them(tmp_path: Path) -> None:
    quoted = row(7, BASE64[1], question='He said "a\tb"\r\nand?', hint="Mind.", A="3", B="4", C="5", answer="C")
    for end in ("\n", "\r\n"):
        file = write(tmp_path, row(3, BASE64[0]), quoted, end=end)
        rows = load_rows(file).rows
        visuals = [(VisualFiles((store_image(picture, PLACE),)),) for picture in PICTURES]
        assert rows[0] == Row("3", "Which?", ("A. x", "B. y"), "B", "logic", visuals[0])
        question = 'Hint: Mind.\nQuestion: He said "a\tb"\r\nand?'
        assert rows[1] == Row("7", question, ("A. 3", "B. 4", "C. 5"), "C", "logic", visuals[1])


def test_image_cells_may_refer_to_rows_before_and_after(tmp_path: Path) -> None:
    assert len(BASE64[0]) > tsv_file.MAX_REFERENCE_CHARACTERS
    rows = load_rows(write(tmp_path, row(1, "2"), row(2, BASE64[0]), row(1000002, "2"), row(3, BASE64[1]))).rows
    pictures = [row.visuals[0].paths[0].read_bytes() for row in rows]
    assert pictures == [PICTURES[0], PICTURES[0], PICTURES[0], PICTURES[1]]


def test_a_picture_may_be_longer_than_a_cell_of_csv(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    large = base64.b64encode(picture_bytes(3, (900, 900), "BMP")).decode()
    assert len(large) > limit
    assert len(load_rows(write(tmp_path, row(1, large), row(2, "1"))).rows) == 2
    assert csv.field_size_limit() == limit


BAD_ROWS = [
    ("image", row(1, "7"), "neither a picture in base64 nor the index of a row"),
    ("image", row(1, "2"), "neither a picture in base64 nor the index of a row"),  # row 2 itself only refers
    ("image", row(1, "?" * 70), "not base64"),
    ("image", row(1, "abcde" * 20 + "a"), "not base64"),
    ("image", row(1, base64.b64encode(b"no picture" * 10).decode()), "the image inside the row cannot be decoded"),
    ("answer", row(1, BASE64[0], answer=""), "the row has no answer"),
    ("solution", row(1, BASE64[0], answer="C"), "no option C"),
    ("options", row(1, BASE64[0], A="x", B="", C="y"), "an empty option between others"),
    ("options", row(1, BASE64[0], B=""), "not 2 to 26 options"),
    ("row", row(1, BASE64[0], question=""), "columns of no known layout"),
    ("index", row(1, BASE64[0]) | {"index": ""}, "the row has no index"),
]


@pytest.mark.parametrize(("field", "bad", "message"), BAD_ROWS)
def test_bad_rows_are_named_and_alone(tmp_path: Path, field: str, bad: dict[str, str], message: str) -> None:
    file = write(tmp_path, row(5, BASE64[0]), bad, row(2, "5"))
    with pytest.raises(DataError, match=r"bench.tsv:3") as caught:
        load_rows(file)
    assert f"field '{field}'" in str(caught.value) and message in str(caught.value)
    assert [row.id for row in load_rows(file, on_bad_row="skip").rows] == ["5", "2"]


def test_rows_of_another_width_and_bytes_that_are_no_text_spoil_one_row(tmp_path: Path) -> None:
    file = tmp_path / "bench.tsv"
    lines = [b"index\tquestion\tA\tB\tanswer", b"1\tWhich?\tx\ty\tA", b"2\tWhich?\tx\ty", b"3\t\xff\tx\ty\tA", b"",
             b"4\tWhich?\tx\ty\tB\t"]  # fmt: skip
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    loaded = load_rows(file, on_bad_row="skip")
    assert [row.id for row in loaded.rows] == ["1"]
    assert [bad.line for bad in loaded.skipped] == [3, 4, 6]
    reasons = [bad.reason for bad in loaded.skipped]
    assert "not as many cells" in reasons[0] and "not UTF-8" in reasons[1] and "not as many cells" in reasons[2]


@pytest.mark.parametrize("question", ['"Hello" he said', '"never closed'])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_quotes_that_do_not_close_end_the_file(tmp_path: Path, question: str, policy: str) -> None:
    file = tmp_path / "bench.tsv"
    file.write_text(f"index\tquestion\tA\tB\tanswer\n1\tWhich?\tx\ty\tA\n2\t{question}\tx\ty\tA\n3\tWhich?\tx\ty\tA\n")
    with pytest.raises(DataError, match=r"bench.tsv:3, field 'row': quotes or a cell that cannot be read"):
        load_rows(file, on_bad_row=policy)


@pytest.mark.parametrize("text", ["", "index\n", "index\tindex\n1\t2\n", '{"id": "a"}\n'])
def test_a_file_needs_a_header(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bench.tsv"
    file.write_text(text)
    with pytest.raises(DataError, match="no header of different column names"):
        list(tsv_rows(file))
