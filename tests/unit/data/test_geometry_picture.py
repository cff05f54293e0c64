import numpy as np
import pytest

from megatron_moe_grpo.data.geometry_picture import (
    BOARD,
    CHALK,
    GLYPHS,
    LABEL,
    Circle,
    Drawing,
    Label,
    draw_figure,
    label_cells,
)


def _pixels(drawing: Drawing, side: int = 64) -> np.ndarray:
    return np.asarray(draw_figure(drawing, side)).astype(int)


def _ink(pixels: np.ndarray) -> np.ndarray:
    """Which pixels have the colour of labels [side, side]."""
    return (pixels == LABEL).all(axis=2)


def test_draw_figure_writes_a_label_pixel_by_pixel() -> None:
    ink = _ink(_pixels(Drawing(labels=(Label("74", (0.56, 0.56)),))))
    rows, columns = np.nonzero(ink)
    assert (rows.min(), columns.min()) == (33, 32)  # its cell is (4, 4): from 32 across, from 32 + 1 down
    seven = ink[33:38, 32:35]
    assert ["".join(".#"[int(dot)] for dot in line) for line in seven] == ["###", "..#", "..#", ".#.", ".#."]
    assert ink[33:38, 36:39].sum() == GLYPHS["4"].count("#")


def test_every_glyph_is_three_by_five_and_differs() -> None:
    assert all([len(line) for line in glyph.split()] == [3] * 5 for glyph in GLYPHS.values())
    assert len(set(GLYPHS.values())) == len(GLYPHS) == 11


def test_labels_of_two_digits_keep_to_one_cell_and_stay_on_the_board() -> None:
    corners = [(x, y) for x in (-0.2, 0.0, 0.31, 1.0, 1.3) for y in (-0.1, 0.49, 1.2)]
    for text in ("?", "25", "120"):
        for middle in corners:
            ink = _ink(_pixels(Drawing(labels=(Label(text, middle),))))
            assert ink.sum() == sum(GLYPHS[sign].count("#") for sign in text)
            seen = {(int(x) // 8, int(y) // 8) for y, x in zip(*np.nonzero(ink), strict=True)}
            assert seen <= label_cells(Label(text, middle))


def test_labels_erase_the_lines_under_them() -> None:
    line = tuple(((0.0, y), (1.0, y)) for y in (0.51, 0.5625))
    plain, labelled = _pixels(Drawing(lines=line)), _pixels(Drawing(lines=line, labels=(Label("?", (0.5, 0.5)),)))
    assert (plain[36, 20:40] != BOARD).any()
    ink = _ink(labelled)
    left = np.nonzero(ink)[1].min()
    box = labelled[32:39, left - 1 : left + 4]  # and a pixel around it
    assert {tuple(pixel) for pixel in box.reshape(-1, 3)} == {BOARD, LABEL}


def test_draw_figure_draws_lines_circles_and_dots_in_chalk() -> None:
    drawing = Drawing(
        lines=(((0.1, 0.1), (0.9, 0.1)),), circles=(Circle((0.5, 0.6), 0.3),), dots=((0.5, 0.6),)
    )  # fmt: skip
    pixels = _pixels(drawing, 128)
    for x, y in ((0.5, 0.1), (0.8, 0.6), (0.5, 0.3), (0.5, 0.6)):
        near = pixels[round(y * 128) - 2 : round(y * 128) + 2, round(x * 128) - 2 : round(x * 128) + 2]
        assert np.abs(near - CHALK).sum(axis=2).min() < 60
    assert tuple(pixels[64, 10]) == BOARD


@pytest.mark.parametrize(("side", "height"), [(64, 5), (128, 10), (224, 15)])
def test_labels_grow_with_the_picture(side: int, height: int) -> None:
    rows, _ = np.nonzero(_ink(_pixels(Drawing(labels=(Label("180", (0.5, 0.5)),)), side)))
    assert rows.max() - rows.min() + 1 == height
