"""CLEVR-like things on a floor, drawn with Pillow's polygons and ellipses: no fonts, no 3-D engine.

Coordinates are shares of the picture's side.  A thing further back stands higher and is smaller; nearer ones hide it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Shape = Literal["cube", "sphere", "cylinder"]
Size = Literal["large", "small"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "gray": (135, 135, 135),
    "red": (200, 40, 40),
    "blue": (50, 80, 230),
    "green": (35, 140, 40),
    "brown": (130, 78, 32),
    "purple": (145, 45, 205),
    "cyan": (50, 210, 210),
    "yellow": (245, 230, 60),
}
"""The eight of CLEVR."""
RADII: dict[Size, float] = {"large": 0.125, "small": 0.068}
"""Half the width of a thing at the front."""
FLOOR_FRONT, FLOOR_BACK = 0.95, 0.42
"""Heights at which things stand, from the top of the picture."""
SHRINKAGE = 0.35
"""How much smaller a thing at the very back looks."""
HORIZON = 0.3
SUPERSAMPLING = 4
MASK_SIDE = 96
"""Pixels of the picture in which visible shares are counted."""

Ink = int | tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: Shape
    colour: str
    size: Size
    x: float
    """Its middle, 0 left to 1 right."""
    depth: float
    """0 front to 1 back."""

    @property
    def radius(self) -> float:
        """Half its width as seen."""
        return RADII[self.size] * (1 - SHRINKAGE * self.depth)

    @property
    def foot(self) -> float:
        """Where it stands, from the top."""
        return FLOOR_FRONT + (FLOOR_BACK - FLOOR_FRONT) * self.depth


@dataclass(frozen=True)
class Paint:
    """Four tones of one colour."""

    plain: Ink
    light: Ink
    dark: Ink
    shine: Ink


def draw_things(things: Sequence[Thing], side: int, brightness: float = 1.0) -> Image.Image:
    """An RGB picture of `side` x `side` pixels; `brightness` below 1 darkens it as a whole."""
    scale = side * SUPERSAMPLING
    image = Image.fromarray(_background(scale))
    draw = ImageDraw.Draw(image)
    for thing in _from_the_back(things):
        red, green, blue = COLOURS[thing.colour]
        _draw_shadow(draw, thing, scale)
        _draw_thing(draw, thing, _paint((red, green, blue)), scale)
    image = image.resize((side, side), Image.Resampling.BOX)
    return image.point(lambda level: round(level * brightness)) if brightness != 1.0 else image


def visible_shares(things: Sequence[Thing]) -> list[float]:
    """The share of each thing's own outline that no nearer thing hides, in the order given."""
    owners = Image.new("L", (MASK_SIDE, MASK_SIDE), 0)
    draw = ImageDraw.Draw(owners)
    for thing in _from_the_back(things):
        number = things.index(thing) + 1
        _draw_thing(draw, thing, Paint(number, number, number, number), MASK_SIDE)
    _, *seen = owners.histogram()
    return [seen[index] / _own_area(thing) for index, thing in enumerate(things)]


@functools.lru_cache(maxsize=64)  # a scene is tried many times while it grows
def _own_area(thing: Thing) -> int:
    alone = Image.new("L", (MASK_SIDE, MASK_SIDE), 0)
    _draw_thing(ImageDraw.Draw(alone), thing, Paint(1, 1, 1, 1), MASK_SIDE)
    return alone.histogram()[1]


def _from_the_back(things: Sequence[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: -thing.depth)


def _background(side: int) -> np.ndarray:
    """A dark wall and a floor that brightens towards the front."""
    heights = (np.arange(side) + 0.5) / side
    levels = np.where(heights < HORIZON, 42, 52 + 40 * (heights - HORIZON) / (1 - HORIZON))
    return np.broadcast_to(levels[:, None, None], (side, side, 3)).astype(np.uint8)


def _paint(colour: tuple[int, int, int]) -> Paint:
    red, green, blue = colour
    return Paint(
        plain=colour,
        light=(red + (255 - red) * 35 // 100, green + (255 - green) * 35 // 100, blue + (255 - blue) * 35 // 100),
        dark=(red * 60 // 100, green * 60 // 100, blue * 60 // 100),
        shine=(red + (255 - red) * 70 // 100, green + (255 - green) * 70 // 100, blue + (255 - blue) * 70 // 100),
    )


def _draw_shadow(draw: ImageDraw.ImageDraw, thing: Thing, scale: int) -> None:
    x, y, radius = thing.x * scale, thing.foot * scale, thing.radius * scale
    draw.ellipse((x - 0.9 * radius, y - 0.3 * radius, x + 1.3 * radius, y + 0.25 * radius), fill=(30, 30, 30))


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, paint: Paint, scale: int) -> None:
    x, foot, radius = thing.x * scale, thing.foot * scale, thing.radius * scale
    if thing.shape == "sphere":
        _draw_sphere(draw, x, foot, radius, paint)
    elif thing.shape == "cube":
        _draw_cube(draw, x, foot, radius, paint)
    else:
        _draw_cylinder(draw, x, foot, radius, paint)


def _draw_sphere(draw: ImageDraw.ImageDraw, x: float, foot: float, radius: float, paint: Paint) -> None:
    y = foot - radius
    for ink, share, shift in ((paint.dark, 1.0, 0.0), (paint.plain, 0.82, 0.12), (paint.light, 0.45, 0.3)):
        reach = share * radius
        middle_x, middle_y = x - shift * radius, y - shift * radius
        draw.ellipse((middle_x - reach, middle_y - reach, middle_x + reach, middle_y + reach), fill=ink)
    draw.ellipse((x - 0.5 * radius, y - 0.5 * radius, x - 0.25 * radius, y - 0.25 * radius), fill=paint.shine)


def _draw_cube(draw: ImageDraw.ImageDraw, x: float, foot: float, radius: float, paint: Paint) -> None:
    """Front, top and right face."""
    left, right, corner = x - radius, x + 0.5 * radius, x + radius
    top, lift = foot - 1.5 * radius, 0.45 * radius
    draw.polygon([(left, top), (right, top), (right, foot), (left, foot)], fill=paint.plain)
    draw.polygon([(left, top), (left + lift, top - lift), (corner, top - lift), (right, top)], fill=paint.light)
    draw.polygon([(right, top), (corner, top - lift), (corner, foot - lift), (right, foot)], fill=paint.dark)


def _draw_cylinder(draw: ImageDraw.ImageDraw, x: float, foot: float, radius: float, paint: Paint) -> None:
    half, top, bend = 0.8 * radius, foot - 1.8 * radius, 0.28 * radius
    draw.ellipse((x - half, foot - 2 * bend, x + half, foot), fill=paint.dark)
    draw.rectangle((x - half, top, x, foot - bend), fill=paint.plain)
    draw.rectangle((x, top, x + half, foot - bend), fill=paint.dark)
    draw.pieslice((x - half, foot - 2 * bend, x + half, foot), 90, 180, fill=paint.plain)
    draw.ellipse((x - half, top - bend, x + half, top + bend), fill=paint.light)
