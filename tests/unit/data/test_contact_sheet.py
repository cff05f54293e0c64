from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clips import write_jpeg_clip

from megatron_moe_grpo.data.contact_sheet import CARD_WIDTH, MARGIN, PICTURE_HEIGHT, draw_contact_sheet
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles

RED = (255, 0, 0)


def _row(name: str, paths: tuple[Path, ...], problem: str = "Which?") -> Row:
    return Row(name, problem, ("A. one", "B. two"), "B", "where", tuple(VisualFiles((path,)) for path in paths))


def _num_red(page: Image.Image) -> int:
    return int((np.asarray(page) == RED).all(axis=-1).sum())


@pytest.mark.parametrize(("num_rows", "columns", "across"), [(1, 5, 1), (10, 5, 5), (7, 4, 4)])
def test_draw_contact_sheet_shows_each_picture_scaled_by_whole_pixels(
    tmp_path: Path, num_rows: int, columns: int, across: int
) -> None:
    Image.new("RGB", (16, 16), RED).save(tmp_path / "red.png")
    page = draw_contact_sheet([_row(str(index), (tmp_path / "red.png",)) for index in range(num_rows)], columns)
    assert page.width == MARGIN + across * (CARD_WIDTH + MARGIN)
    assert _num_red(page) == num_rows * 160 * 160


def test_draw_contact_sheet_shows_several_large_or_no_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), RED).save(tmp_path / "large.png")
    two = draw_contact_sheet([_row("two", (tmp_path / "large.png",) * 2)])
    one = draw_contact_sheet([_row("one", (tmp_path / "large.png",))])
    assert _num_red(one) == 192 * 96
    assert _num_red(two) == 2 * 92 * 46
    assert draw_contact_sheet([_row("none", ())]).height == one.height - PICTURE_HEIGHT - MARGIN


def test_draw_contact_sheet_lays_the_frames_of_a_video_in_a_grid(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), RED, np.uint8)
    clip = write_jpeg_clip(tmp_path / "clip.avi", [Image.fromarray(pixels)] * 20)
    row = Row("video", "Which?", ("A. one", "B. two"), "B", "where", (VisualFiles((clip,), is_video=True),))
    page = np.asarray(draw_contact_sheet([row])).astype(int)
    is_red = (page[..., 0] > 240) & (page[..., 1:] < 20).all(axis=-1)
    # 8 frames in cells of 64 x 53: each three times as large.
    assert is_red.sum() == 8 * 48 * 48


def test_draw_contact_sheet_writes_open_answers() -> None:
    questions = [Row("open", "How long?", (), solution, "geometry", ()) for solution in ("12", "13")]
    twelve, thirteen = (np.asarray(draw_contact_sheet([row])) for row in questions)
    assert twelve.shape == thirteen.shape
    assert (twelve != thirteen).any()


def test_draw_contact_sheet_grows_with_the_question() -> None:
    short = draw_contact_sheet([_row("a", ())])
    long = draw_contact_sheet([_row("a", (), problem="a long question " * 20)])
    assert long.height > short.height + 100
