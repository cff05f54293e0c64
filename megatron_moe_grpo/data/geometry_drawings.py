"""Where the lines and labels of a geometry figure go.  Angles are true; lengths fill the board, whatever the numbers.

Each function draws turn, mirror and shift at random; labels keep apart (tests/unit/data/test_geometry_figures.py).
"""

import math

import numpy as np

from megatron_moe_grpo.data.geometry_picture import GRID, Circle, Drawing, Label, Point, num_cells

REACH = 0.31
"""Half of the longer extent of a triangle."""
LABEL_GAP = 0.09
"""From a corner or a side to the middle of its label."""
ANGLE_GAP = 0.075
"""From the crossing line to the nearer end of an angle's label: more than the label grid can take away."""
TICK = 0.035
CORNER = 0.07
"""Side of the mark of a right angle."""
LINE_HEIGHTS = (0.375, 0.625)
"""Of the two parallel lines, from the top: between rows of the label grid."""
HALF_CELL = 0.5 / GRID


def triangle_drawing(angles: tuple[int, int, int], labels: tuple[str, str, str], rng: np.random.Generator) -> Drawing:
    """A triangle of these angles in degrees, each label outside its corner; an empty label is left out."""
    return _labelled_corners(_turned(_corners(angles), rng), labels)


def isosceles_drawing(base: int, labels: tuple[str, str, str], rng: np.random.Generator) -> Drawing:
    """Two corners of `base` degrees, then the top; a stroke across each of the equal sides."""
    corners = _turned(_corners((base, base, 180 - 2 * base)), rng)
    drawing = _labelled_corners(corners, labels)
    ticks = (_tick(corners[0], corners[2]), _tick(corners[1], corners[2]))
    return Drawing(lines=drawing.lines + ticks, labels=drawing.labels)


def right_triangle_drawing(sides: tuple[int, int, int], labels: tuple[str, ...], rng: np.random.Generator) -> Drawing:
    """Legs, then the longest side, each labelled outside its middle; a small square marks the right angle."""
    corners = _turned([(0.0, 0.0), (float(sides[0]), 0.0), (0.0, float(sides[1]))], rng)
    square, along, up = corners
    mark = (_towards(square, along), _beyond(square, along, up), _towards(square, up))
    pairs = ((square, along), (square, up), (along, up))
    middle = _middle(corners)
    texts = tuple(Label(text, _outside(_middle(pair), middle)) for text, pair in zip(labels, pairs, strict=True))
    return Drawing(lines=((*corners, square), mark), labels=texts)


def circle_drawing(number: str, has_diameter: bool, rng: np.random.Generator) -> Drawing:
    """A circle with its middle and a radius or diameter, whose label stands beside it."""
    x, y, radius = rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56), rng.uniform(0.3, 0.4)
    turn = rng.uniform(0, 2 * math.pi)
    end = (x + radius * math.cos(turn), y + radius * math.sin(turn))
    start = (2 * x - end[0], 2 * y - end[1]) if has_diameter else (x, y)
    half = 0.5 * radius
    # Beside the middle of the radius, on the side a quarter turn further.
    place = (
        x + half * math.cos(turn) - 0.11 * math.sin(turn),
        y + half * math.sin(turn) + 0.11 * math.cos(turn),
    )  # fmt: skip
    return Drawing(
        lines=((start, end),), circles=(Circle((x, y), radius),), dots=((x, y),), labels=(Label(number, place),)
    )


def parallel_drawing(given: int, relation: str, rng: np.random.Generator) -> Drawing:
    """Two level lines and one that crosses them; the angle of `given` degrees, and "?" at the other crossing.

    At a crossing the angle to the right of the crossing line and above the level one measures its slope, as does the
    one opposite; the two beside them measure the rest to 180.
    """
    is_right, is_upper, is_above = (bool(rng.integers(2)) for _ in range(3))
    if relation != "corresponding":
        is_above = not is_upper  # between the lines
    slope = given if is_right == is_above else 180 - given
    x = rng.uniform(0.46, 0.54)
    lean = 0.5 * (LINE_HEIGHTS[1] - LINE_HEIGHTS[0]) / math.tan(math.radians(slope))
    upper, lower = (x + lean, LINE_HEIGHTS[0]), (x - lean, LINE_HEIGHTS[1])
    level = (((0.04, upper[1]), (0.96, upper[1])), ((0.04, lower[1]), (0.96, lower[1])))
    given_at, asked_at = (upper, lower) if is_upper else (lower, upper)
    return Drawing(
        lines=(*level, _prolonged(lower, upper)),
        labels=(
            _angle_label(str(given), given_at, slope, is_right, is_above),
            _angle_label("?", asked_at, slope, *_asked_region(relation, is_right, is_above)),
        ),
    )


def _asked_region(relation: str, is_right: bool, is_above: bool) -> tuple[bool, bool]:
    """(is right, is above) of the angle asked for at the other crossing."""
    if relation == "corresponding":
        return is_right, is_above
    return (not is_right if relation == "alternate" else is_right), not is_above


def _angle_label(text: str, crossing: Point, slope: int, is_right: bool, is_above: bool) -> Label:
    """In the row of the label grid next to the level line, beside the crossing line."""
    rise = HALF_CELL if is_above else -HALF_CELL
    reach = ANGLE_GAP + num_cells(text) * HALF_CELL
    x = crossing[0] + rise / math.tan(math.radians(slope)) + (reach if is_right else -reach)
    return Label(text, (x, crossing[1] - rise))


def _corners(angles: tuple[int, int, int]) -> list[Point]:
    """A triangle with the first two angles on its base; by the law of sines."""
    first, second, third = (math.radians(angle) for angle in angles)
    side = math.sin(second) / math.sin(third)
    return [(0.0, 0.0), (1.0, 0.0), (side * math.cos(first), side * math.sin(first))]


def _turned(corners: list[Point], rng: np.random.Generator) -> list[Point]:
    """Turned at random, mirrored or not, scaled and shifted to fill the middle of the board."""
    turn, flip = rng.uniform(0, 2 * math.pi), 1 if rng.integers(2) else -1
    points = np.array(corners) * (1, flip)
    points = points @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    low, high = points.min(axis=0), points.max(axis=0)
    points = 0.5 + (points - (low + high) / 2) * 2 * REACH / (high - low).max()
    return [(float(x), float(y)) for x, y in points]


def _labelled_corners(corners: list[Point], labels: tuple[str, str, str]) -> Drawing:
    middle = _middle(corners)
    texts = tuple(Label(text, _outside(at, middle)) for text, at in zip(labels, corners, strict=True) if text)
    return Drawing(lines=((*corners, corners[0]),), labels=texts)


def _middle(points: list[Point] | tuple[Point, ...]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _outside(point: Point, middle: Point) -> Point:
    """`point`, a little further from `middle`."""
    distance = math.dist(point, middle)
    return tuple(p + LABEL_GAP * (p - m) / distance for p, m in zip(point, middle, strict=True))  # type: ignore[return-value]


def _towards(start: Point, end: Point) -> Point:
    share = CORNER / math.dist(start, end)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _beyond(start: Point, one: Point, other: Point) -> Point:
    """The fourth corner of the small square at `start`."""
    first, second = _towards(start, one), _towards(start, other)
    return first[0] + second[0] - start[0], first[1] + second[1] - start[1]


def _tick(start: Point, end: Point) -> tuple[Point, Point]:
    """A short stroke across the middle of a side."""
    x, y = _middle((start, end))
    distance = math.dist(start, end)
    across = (TICK * (end[1] - start[1]) / distance, -TICK * (end[0] - start[0]) / distance)
    return (x - across[0], y - across[1]), (x + across[0], y + across[1])


def _prolonged(lower: Point, upper: Point) -> tuple[Point, Point]:
    """The crossing line, carried on beyond both crossings by as much again."""
    run, rise = upper[0] - lower[0], upper[1] - lower[1]
    return (lower[0] - run, lower[1] - rise), (upper[0] + run, upper[1] + rise)
