from pathlib import Path
from typing import Any

import pytest

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.data.row_visuals import MAX_FRAME_PATHS, read_row_visuals
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("rows.jsonl", 7, "cat")
NINE = [f"{number}.png" for number in range(1, 10)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*NINE, "a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def _shown(raw: dict[str, Any], root: Path, problem: str = "Which?") -> list[str | list[str]]:
    """A name for an image, a list of names for a video."""
    visuals = read_row_visuals(raw, problem, root, PLACE)
    names = [[str(path.relative_to(root)) for path in files.paths] for files in visuals]
    return [paths if files.is_video else paths[0] for files, paths in zip(visuals, names, strict=True)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, []),
        ({"image": "1.png"}, ["1.png"]),
        ({"image": {"bytes": None, "path": "1.png"}}, ["1.png"]),
        ({"image": ["2.png", "1.png"]}, ["2.png", "1.png"]),
        ({"images": []}, []),
        ({"images": ["2.png", "1.png", "2.png"]}, ["2.png", "1.png", "2.png"]),
        ({"images": NINE[:8]}, NINE[:8]),
        ({"video": "a.mp4"}, [["a.mp4"]]),
        ({"video": ["1.png", "2.png"]}, [["1.png", "2.png"]]),
        ({"videos": []}, []),
        ({"videos": ["b.mp4", ["1.png", "2.png"], "a.mp4"]}, [["b.mp4"], ["1.png", "2.png"], ["a.mp4"]]),
        ({"video": NINE, "image": "1.png"}, ["1.png", NINE]),
        ({"video": None, "image": None}, []),
    ],
)
def test_read_row_visuals_takes_every_spelling(
    root: Path, raw: dict[str, Any], expected: list[str | list[str]]
) -> None:
    assert _shown(raw, root) == expected


def test_read_row_visuals_gives_resolved_paths_of_its_kind(root: Path) -> None:
    raw = {"image": "1.png", "video": "a.mp4"}
    expected = (VisualFiles((root / "1.png",)), VisualFiles((root / "a.mp4",), is_video=True))
    assert read_row_visuals(raw, "Which?", root, PLACE) == expected


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("no tags", ["1.png", "2.png", ["a.mp4"], ["b.mp4"]]),
        ("<image><image><video><video>", ["1.png", "2.png", ["a.mp4"], ["b.mp4"]]),
        ("<video> <image> or <video> <image>?", [["a.mp4"], "1.png", ["b.mp4"], "2.png"]),
        ("<video><video> then <image><image>", [["a.mp4"], ["b.mp4"], "1.png", "2.png"]),
    ],
)
def test_read_row_visuals_follows_the_tags(root: Path, problem: str, expected: list[str | list[str]]) -> None:
    assert _shown({"images": ["1.png", "2.png"], "videos": ["a.mp4", "b.mp4"]}, root, problem) == expected


@pytest.mark.parametrize(
    ("problem", "raw", "message"),
    [
        ("<image> <image>", {"image": "1.png"}, "2 tags, 1 images"),
        ("<image>", {}, "1 tags, 0 images"),
        ("<image>", {"image": ["1.png", "2.png"]}, "1 tags, 2 images"),
        ("<video>", {"image": "1.png"}, "0 tags, 1 images"),
        ("<video>", {}, "1 tags, 0 videos"),
        ("<video>", {"videos": ["a.mp4", "b.mp4"]}, "1 tags, 2 videos"),
        ("<video>", {"video": ["1.png", "2.png"], "image": "1.png"}, "0 tags, 1 images"),
        ("<image>", {"video": "a.mp4", "image": "1.png"}, "0 tags, 1 videos"),
    ],
)
def test_read_row_visuals_refuses_another_number_of_tags(
    root: Path, problem: str, raw: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7 \(id 'cat'\), field 'problem'") as caught:
        read_row_visuals(raw, problem, root, PLACE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "raw", "message"),
    [
        ("image", {"image": 3}, "wrong type"),
        ("image", {"image": {"bytes": None, "path": None}}, "wrong type"),
        ("image", {"image": "half \ud800"}, "surrogate"),
        ("image", {"image": [None]}, "wrong type"),
        ("images", {"images": "1.png", "image": "1.png"}, "beside image"),
        ("images", {"images": NINE}, "too many images"),
        ("image", {"image": NINE}, "too many images"),
        ("image", {"image": "nowhere.png"}, "the image file does not exist"),
        ("video", {"video": 3}, "wrong type"),
        ("video", {"video": {"bytes": None, "path": "a.mp4"}}, "wrong type"),
        ("video", {"video": [["1.png"]]}, "wrong type"),
        ("video", {"video": []}, "not a usable number of frames"),
        ("video", {"video": ["1.png"] * (MAX_FRAME_PATHS + 1)}, "not a usable number of frames"),
        ("videos", {"videos": {"path": "a.mp4"}}, "wrong type"),
        ("videos", {"videos": [None]}, "wrong type"),
        ("videos", {"videos": ["a.mp4", []]}, "not a usable number of frames"),
        ("videos", {"videos": ["a.mp4"] * 9}, "too many videos"),
        ("videos", {"videos": ["a.mp4"], "video": "a.mp4"}, "beside video"),
        ("video", {"video": "nowhere.mp4"}, "the video file does not exist"),
        ("video", {"videos": ["a.mp4", ["1.png", "../x.png"]]}, "leaves the image root"),
        ("video", {"video": "rtsp://camera/1"}, "URLs"),
        ("video", {"video": "half \ud800"}, "surrogate"),
    ],
)
def test_read_row_visuals_names_what_is_wrong(root: Path, field: str, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_row_visuals(raw, "Which?", root, PLACE)
    assert f"rows.jsonl:7 (id 'cat'), field '{field}'" in str(caught.value)
    assert message in str(caught.value)
