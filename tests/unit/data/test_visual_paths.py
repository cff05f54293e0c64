import os
from pathlib import Path

import pytest

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.data.visual_paths import resolve_visual_path
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("rows.jsonl", 3, "cat")


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A root with one good file and every kind of bad one; a secret file lies beside it."""
    root = tmp_path / "pictures"
    (root / "folder").mkdir(parents=True)
    (root / "good.png").write_bytes(b"x")
    (tmp_path / "pictures_secret.png").write_bytes(b"x")  # shares the root's name as a prefix
    (root / "link_out.png").symlink_to(tmp_path / "pictures_secret.png")
    (root / "folder_out").symlink_to(tmp_path)
    (root / "link_in.png").symlink_to(root / "good.png")
    (root / "loop_1.png").symlink_to(root / "loop_2.png")
    (root / "loop_2.png").symlink_to(root / "loop_1.png")
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "fifo.png")
    return root


@pytest.mark.parametrize("text", ["good.png", "./good.png", "folder/../good.png", "link_in.png"])
def test_resolve_visual_path_accepts_files_inside(image_root: Path, text: str) -> None:
    assert resolve_visual_path(text, image_root, PLACE, "image") == image_root / "good.png"


def test_resolve_visual_path_accepts_an_absolute_path_inside_and_a_linked_root(
    image_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked_root").symlink_to(image_root)
    good = image_root / "good.png"
    assert resolve_visual_path(str(good), image_root, PLACE, "image") == good
    assert resolve_visual_path("good.png", tmp_path / "linked_root", PLACE, "image") == good


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../pictures_secret.png", "leaves the image root"),
        ("folder/../../pictures_secret.png", "leaves the image root"),
        ("../nowhere.png", "leaves the image root"),  # missing outside looks like present outside
        ("/etc/passwd", "leaves the image root"),
        ("/dev/zero", "leaves the image root"),
        ("/proc/self/mem", "leaves the image root"),
        ("link_out.png", "leaves the image root"),
        ("folder_out/pictures_secret.png", "leaves the image root"),
        ("fifo.png", "not a regular file"),
        ("folder", "not a regular file"),
        (".", "not a regular file"),
        ("nowhere.png", "does not exist"),
        ("dangling.png", "does not exist"),
        ("loop_1.png", "cannot be followed"),
        ("good.png/x.png", "cannot be followed"),
        ("x" * 300, "cannot be followed"),  # longer than a file name may be
        ("x" * 5000, "not a usable path"),
        ("good.png\0.txt", "not a usable path"),
        ("", "not a usable path"),
        ("https://example.org/cat.png", "URLs"),
        ("file:///etc/passwd", "URLs"),
        ("data:image/png;base64,AAAA", "URLs"),
    ],
)
def test_resolve_visual_path_refuses_hostile_paths(image_root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        resolve_visual_path(text, image_root, PLACE, "image")
    assert "rows.jsonl:3 (id 'cat'), field 'image'" in str(caught.value)
    assert "\0" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_resolve_visual_path_names_the_field_of_its_kind(image_root: Path) -> None:
    for text, message in (("nowhere.mp4", "the video file does not exist"), ("folder", "a video file")):
        with pytest.raises(DataError, match=message) as caught:
            resolve_visual_path(text, image_root, PLACE, "video")
        assert "rows.jsonl:3 (id 'cat'), field 'video'" in str(caught.value)
