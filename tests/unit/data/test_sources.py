import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from PIL import Image
from video_clips import flat_frames, write_clip

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import FEATURES, LoadedRows, load_rows, rows_to_dataset
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError


def _raw(row_id: str, **change: Any) -> dict[str, Any]:
    return {"id": row_id, "image": "1.png", "problem": "How many?", "options": ["3", "4"], "solution": "B"} | change


def _line(row_id: str, **change: Any) -> bytes:
    return json.dumps(_raw(row_id, **change)).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (8, 8), 100).save(tmp_path / "1.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    return tmp_path


def _load(folder: Path, lines: list[bytes], **arguments: Any) -> LoadedRows:
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return load_rows(folder / "rows.jsonl", **arguments)


def test_load_rows_reads_jsonl_in_order_with_windows_ends_mark_and_blank_lines(folder: Path) -> None:
    second = json.dumps(_raw("second", problem="a\u2028b"), ensure_ascii=False).encode()  # only \n ends a line
    loaded = _load(folder, [b"\xef\xbb\xbf" + _line("first") + b"\r", b"", second, b"  ", b""])
    assert [row.id for row in loaded.rows] == ["first", "second"]
    assert loaded.rows[0] == Row(
        "first", "How many?", ("A. 3", "B. 4"), "B", "multiple choice", (VisualFiles((folder / "1.png",)),)
    )
    assert loaded.skipped == ()


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"id": "bad", oops', "not valid JSON"),
    (b'{"id": "bad",}', "not valid JSON"),
    (b'{"id": "bad"} {"id": "x"}', "not valid JSON"),
    (b'{"id": "bad", "id": "worse"}', "the key 'id' stands twice"),
    (b'{"id": "bad", "weight": NaN}', "NaN is not JSON"),
    (b'{"id": "bad", "weight": -Infinity}', "-Infinity is not JSON"),
    (b'{"id": "bad", "weight": ' + b"1" * 5000 + b"}", "not valid JSON"),
    (b'{"id": "bad", "x": ' + b"[" * 100_000, "not valid JSON"),
    (b'{"id": "\xff"}', "not valid JSON"),
    (b"\0", "not valid JSON"),
    (b"3", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"[1]", "not a JSON object"),
    (_line("good 1"), "the id stands twice"),
    (_line("bad", image="broken.png"), "cannot be decoded"),
    (_line("bad", image="nowhere.png"), "does not exist"),
    (_line("bad", solution=2), "wrong type"),
    (_line("bad", solution=None), "no solution"),
    (_line("bad", solution="C"), "no option C"),
    (_line("bad", options=["3", "3"]), "the same"),
    (_line("bad", id=["list"]), "wrong type"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES)
def test_load_rows_names_or_skips_the_bad_line_alone(folder: Path, bad: bytes, message: str) -> None:
    lines = [_line("good 1"), b"", bad, _line("good 2"), _line("good 3", image=None, images=["1.png"])]
    with pytest.raises(DataError, match="rows.jsonl:3") as caught:
        _load(folder, lines)
    assert message in str(caught.value)
    loaded = _load(folder, lines, on_bad_row="skip")
    assert [row.id for row in loaded.rows] == ["good 1", "good 2", "good 3"]
    assert [(row.line, row.reason) for row in loaded.skipped] == [(3, str(caught.value))]


def test_load_rows_lists_skipped_rows_with_their_ids(folder: Path) -> None:
    lines = [_line("a", solution="C"), _line("b"), b"oops", _line("c", options=[]), _line("d")]
    loaded = _load(folder, lines, on_bad_row="skip")
    assert [row.id for row in loaded.rows] == ["b", "d"]
    assert [(row.line, row.id) for row in loaded.skipped] == [(1, "a"), (3, None), (4, "c")]


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("lines", [[], [b"", b"  "]])
def test_load_rows_refuses_a_file_without_rows(folder: Path, policy: str, lines: list[bytes]) -> None:
    with pytest.raises(DataError, match="no usable row"):
        _load(folder, lines, on_bad_row=policy)


def test_load_rows_refuses_a_file_of_bad_rows_only_and_shows_the_first(folder: Path) -> None:
    with pytest.raises(DataError, match="2 bad rows") as caught:
        _load(folder, [_line("a", solution="C"), b"oops"], on_bad_row="skip")
    assert "no option C" in str(caught.value)


def test_load_rows_refuses_utf16(folder: Path) -> None:
    with pytest.raises(DataError, match="rows.jsonl:1"):
        _load(folder, [_line("a").decode().encode("utf-16")])


def test_load_rows_opens_no_image_when_told_so(folder: Path) -> None:
    assert len(_load(folder, [_line("a", image="broken.png")], check_images=False).rows) == 1


def test_load_rows_takes_another_image_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "rows.jsonl"
    elsewhere.write_bytes(_line("a"))
    assert load_rows(elsewhere, folder).rows[0].visuals == (VisualFiles((folder / "1.png",)),)
    with pytest.raises(DataError, match="does not exist"):
        load_rows(elsewhere)


def test_load_rows_asks_the_caller_for_known_problems(folder: Path) -> None:
    def too_long(row: Row) -> str | None:
        return "the prompt is too long" if len(row.problem) > 10 else None

    lines = [_line("a"), _line("b", problem="x" * 11)]
    with pytest.raises(DataError, match=r"rows.jsonl:2 \(id 'b'\), field 'row': the prompt is too long"):
        _load(folder, lines, known_problem=too_long)
    loaded = _load(folder, lines, on_bad_row="skip", known_problem=too_long)
    assert ([row.id for row in loaded.rows], [row.id for row in loaded.skipped]) == (["a"], ["b"])


def test_load_rows_reads_a_json_list(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps([_raw("a"), 3, _raw("b")]))
    loaded = load_rows(folder / "rows.json", on_bad_row="skip")
    assert ([row.id for row in loaded.rows], [row.line for row in loaded.skipped]) == (["a", "b"], [2])
    (folder / "rows.json").write_text(json.dumps(_raw("a")))
    with pytest.raises(DataError, match=r"must hold one list"):
        load_rows(folder / "rows.json")


def test_rows_to_dataset_round_trips_through_save_to_disk_offline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    two_images = _line("c", image=["1.png", "1.png"], solution="3", problem_type="count")
    open_answer = _line("d", options=[], problem_type="counting", solution="7", rationale="3+4")
    lines = [_line("a"), _line("b", image=None), two_images, open_answer]
    loaded = _load(folder, lines)
    table = rows_to_dataset(loaded.rows, folder)
    assert table.features == FEATURES
    assert table[2]["images"] == ["1.png", "1.png"]
    table.save_to_disk(str(folder / "saved"))
    assert load_rows(folder / "saved", image_root=folder) == loaded


def test_rows_to_dataset_keeps_videos_and_their_places(folder: Path) -> None:
    write_clip(folder / "clip.mp4", flat_frames(3))
    mixed = _line("mixed", videos=["clip.mp4", ["1.png", "1.png"], ["1.png"]], problem="<video><image><video><video>?")
    loaded = _load(folder, [mixed, _line("a"), _line("c", image=None, video="clip.mp4")])
    is_video = [[files.is_video for files in row.visuals] for row in loaded.rows]
    assert is_video == [[True, False, True, True], [False], [True]]
    table = rows_to_dataset(loaded.rows, folder)
    assert table[0]["videos"] == [["clip.mp4"], ["1.png", "1.png"], ["1.png"]]
    table.save_to_disk(str(folder / "saved"))
    assert load_rows(folder / "saved", image_root=folder) == loaded


def test_load_rows_checks_the_frames_that_will_be_seen(folder: Path) -> None:
    frames = ["1.png", "broken.png", "1.png", "1.png", "1.png"]  # of two frames, the 2nd and the 4th are seen
    with pytest.raises(DataError, match=r"rows.jsonl:1 \(id 'a'\), field 'video': the image .*broken.png cannot"):
        _load(folder, [_line("a", image=None, video=frames)])
    with pytest.raises(DataError, match="broken.png"):
        _load(folder, [_line("a", image=None, video=frames)], video_frames=2)
    assert len(_load(folder, [_line("a", image=None, video=frames)], video_frames=1).rows) == 1
    assert len(_load(folder, [_line("a", image=None, video=frames)], check_images=False).rows) == 1


def test_load_rows_checks_video_files(folder: Path) -> None:
    clip = write_clip(folder / "clip.mp4", flat_frames(20))
    whole = clip.read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    lines = [_line("a", video="clip.mp4"), _line("b", video="cut.mp4")]
    with pytest.raises(DataError, match=r"rows.jsonl:2 \(id 'b'\), field 'video': the video .*cut.mp4"):
        _load(folder, lines)
    assert [row.id for row in _load(folder, lines, on_bad_row="skip").skipped] == ["b"]


def test_load_rows_names_the_row_of_a_saved_dataset(folder: Path) -> None:
    datasets.Dataset.from_list([_raw("a"), _raw("b", solution=None)]).save_to_disk(str(folder / "saved"))
    with pytest.raises(DataError, match=r"saved:2 \(id 'b'\), field 'solution'"):
        load_rows(folder / "saved", image_root=folder)


def test_load_rows_names_the_row_of_a_damaged_picture_inside_a_saved_dataset(folder: Path) -> None:
    table = datasets.Dataset.from_list([_raw("a", image={"bytes": b"\x89PNG", "path": None})])
    table.cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved"))
    with pytest.raises(
        DataError, match=r"saved:1 \(id 'a'\), field 'image': the image inside the row cannot be decoded"
    ):
        load_rows(folder / "saved", image_root=folder)


def test_load_rows_lists_the_known_layouts_where_columns_are_of_none(folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1, field 'row': columns of no known layout") as caught:
        _load(folder, [b'{"text": "hello"}'])
    assert all(name in str(caught.value) for name in ("OneThinker", "LLaVA", "R1-V", "verl", "ms-swift", "MMBench"))


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_load_rows_refuses_what_is_no_data(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="save_to_disk"):
        load_rows(folder / name)


def test_datasets_json_reader_still_changes_rows(folder: Path) -> None:
    # Why sources.py parses lines itself; when this fails, reconsider.
    (folder / "rows.jsonl").write_bytes(b'{"options": ["1", "2"]}\n{"options": [1, 2]}\n')
    table = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    assert table[0]["options"] != ["1", "2"]
