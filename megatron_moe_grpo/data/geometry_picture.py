"""Figures in chalk on a board: lines and circles with Pillow, numbers in a bitmap font of 3 x 5 pixels a sign.

Coordinates are shares of the picture's side.  Labels are drawn after scaling down and stand on a grid of an eighth of
the side (8 pixels at 64: a patch of the tiny models), so that a label of two digits is seen whole.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

BOARD, CHALK, LABEL = (34, 40, 38), (150, 160, 155), (250, 245, 190)
SUPERSAMPLING = 4
LINE_WIDTH = 0.018
DOT_RADIUS = 0.02
GRID = 8
"""Cells of the label grid across and down."""
GLYPH_WIDTH, GLYPH_HEIGHT = 3, 5
PIXELS_A_SIGN = 64
"""The font grows by one pixel a point for every 64 pixels of the picture's side."""
GLYPHS = {
    "0": "### #.# #.# #.# ###", "1": ".#. ##. .#. .#. ###", "2": "### ..# ### #.. ###", "3": "### ..# ### ..# ###",
    "4": "#.# #.# ### ..# ..#", "5": "### #.. ### ..# ###", "6": "### #.. ### #.# ###", "7": "### ..# ..# .#. .#.",
    "8": "### #.# ### #.# ###", "9": "### #.# ### ..# ###", "?": "### ..# .## ... .#.",
}  # fmt: skip

Point = tuple[float, float]


@dataclass(frozen=True)
class Circle:
    """Middle and radius."""

    middle: Point
    radius: float


@dataclass(frozen=True)
class Label:
    """A number, or "?" for the one asked for, as near to `middle` as the grid allows."""

    text: str
    middle: Point


@dataclass(frozen=True)
class Drawing:
    """What is on the board."""

    lines: tuple[tuple[Point, ...], ...] = ()
    """Polylines."""
    circles: tuple[Circle, ...] = ()
    dots: tuple[Point, ...] = ()
    labels: tuple[Label, ...] = ()


def label_cells(label: Label) -> frozenset[tuple[int, int]]:
    """Cells (column, row) of the label grid that the label covers."""
    column, row = _first_cell(label)
    return frozenset((column + index, row) for index in range(num_cells(label.text)))


def num_cells(text: str) -> int:
    """How many cells of the label grid a text takes: one for two signs, two for four."""
    return -(-len(text) // 2)


def draw_figure(drawing: Drawing, side: int, brightness: float = 1.0) -> Image.Image:
    """An RGB picture of `side` x `side` pixels; `brightness` below 1 darkens it as a whole."""
    scale = side * SUPERSAMPLING
    image = Image.new("RGB", (scale, scale), BOARD)
    draw = ImageDraw.Draw(image)
    width = max(1, round(LINE_WIDTH * scale))
    for line in drawing.lines:
        draw.line([(x * scale, y * scale) for x, y in line], fill=CHALK, width=width)
    for circle in drawing.circles:
        draw.ellipse(_box(circle.middle, circle.radius, scale), outline=CHALK, width=width)
    for dot in drawing.dots:
        draw.ellipse(_box(dot, DOT_RADIUS, scale), fill=CHALK)
    pixels = np.array(image.resize((side, side), Image.Resampling.BOX))
    for label in drawing.labels:
        _write(pixels, label, side)
    return Image.fromarray(np.rint(pixels * brightness).astype(np.uint8))


def _box(middle: Point, radius: float, scale: int) -> tuple[float, float, float, float]:
    x, y = middle
    return (x - radius) * scale, (y - radius) * scale, (x + radius) * scale, (y + radius) * scale


def _first_cell(label: Label) -> tuple[int, int]:
    x, y = label.middle
    across = num_cells(label.text)
    column = min(max(round(x * GRID - across / 2), 0), GRID - across)
    return column, min(max(round(y * GRID - 0.5), 0), GRID - 1)


def _write(pixels: np.ndarray, label: Label, side: int) -> None:
    """Writes the label into `pixels` [side, side, 3], on a piece of clean board so that no line runs through it."""
    point = max(1, side // PIXELS_A_SIGN)
    column, row = _first_cell(label)
    left, top = column * side // GRID, row * side // GRID + point
    width = (GLYPH_WIDTH + 1) * len(label.text) - 1
    ink = np.zeros((GLYPH_HEIGHT, width), dtype=bool)
    for index, sign in enumerate(label.text):
        first = index * (GLYPH_WIDTH + 1)
        ink[:, first : first + GLYPH_WIDTH] = [[dot == "#" for dot in line] for line in GLYPHS[sign].split()]
    ink = ink.repeat(point, axis=0).repeat(point, axis=1)
    pixels[max(top - point, 0) : top + ink.shape[0] + point, max(left - point, 0) : left + ink.shape[1] + point] = BOARD
    pixels[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = LABEL
