"""Geometry questions with computed answers: triangles, circles, parallel lines.

The numbers that an answer needs stand in the picture and nowhere else, and the words are the same for every figure of a
kind.  A case (kind, given numbers, what is asked) is for test or for training: test figures are not seen from another
side in training, they are new.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from megatron_moe_grpo.data.geometry_drawings import (
    circle_drawing,
    isosceles_drawing,
    parallel_drawing,
    right_triangle_drawing,
    triangle_drawing,
)
from megatron_moe_grpo.data.geometry_picture import Drawing
from megatron_moe_grpo.errors import DataError

SplitName = Literal["train", "test", "pretrain"]
FigureKind = Literal["third_angle", "isosceles", "pythagoras", "circle", "parallel_lines"]

KINDS: tuple[FigureKind, ...] = get_args(FigureKind)
STREAMS: dict[SplitName, int] = {"train": 21, "test": 22, "pretrain": 23}
SPLIT_STREAM = 20
TEST_SHARE = 1 / 6
"""Share of each kind's cases that test figures are drawn from; the other splits share the rest."""
STRAIGHT = 180
LEAST_ANGLE = 20
LARGEST_STEP = 30
LARGEST_RADIUS = 20
LARGEST_SIDE = 30
THINNEST = 3
"""A longer leg is less than so many times the shorter one: the labels of a thinner triangle run into one another."""

ANGLE_PROBLEM = "What is the missing angle?"
SIDE_PROBLEM = "How long is the missing side?"
AREA_PROBLEM = "What is the area?"
CIRCUMFERENCE_PROBLEM = "What is the circumference?"


@dataclass(frozen=True)
class Case:
    """One question, which can be drawn in many ways."""

    parameters: tuple[str, ...]
    """The kind, then what makes it another case than the next one."""
    problem: str
    solution: str
    """A whole number, or one times pi: "40", "25*pi"."""
    rationale: str
    """How its number is reached: "180-80-60"."""
    draw: Callable[[np.random.Generator], Drawing]


@dataclass(frozen=True)
class Figure:
    """A case as it is drawn."""

    kind: FigureKind
    case: Case
    drawing: Drawing


def make_figures(
    split: SplitName, count: int, seed: int, kinds: tuple[FigureKind, ...] = KINDS, angle_step: int = 10
) -> list[Figure]:
    """`count` figures of one split, the kinds in turn, the solutions of a kind's cases uniform; a pure function.

    Args:
        angle_step: angles are its multiples, degrees.
    Raises:
        DataError: no kind, or a step that does not divide 180 or leaves too few angles.
    """
    if not kinds or not 1 <= angle_step <= LARGEST_STEP or STRAIGHT % angle_step:
        raise DataError(
            "no figure can be drawn with these settings",
            got=f"kinds {', '.join(kinds) or 'none'}, angle step {angle_step}",
            expected=f"one kind at least, and a step of at most {LARGEST_STEP} degrees that divides {STRAIGHT}",
        )
    rng = np.random.default_rng([seed, STREAMS[split]])
    cases = {kind: _by_solution(split_cases(kind, angle_step, seed)[split == "test"]) for kind in set(kinds)}
    figures = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        of_solution = cases[kind][rng.integers(len(cases[kind]))]
        case = of_solution[rng.integers(len(of_solution))]
        figures.append(Figure(kind, case, case.draw(rng)))
    return figures


def split_cases(kind: FigureKind, angle_step: int, seed: int) -> tuple[list[Case], list[Case]]:
    """The kind's cases for train and pretrain, and those for test: disjoint, neither is empty.

    (Tried: cases of their own for the pretrain split.  A tiny dense start then answered far fewer new figures.)
    """
    cases = list(CASES[kind](angle_step))
    order = np.random.default_rng([seed, SPLIT_STREAM, KINDS.index(kind)]).permutation(len(cases))
    num_test = max(1, round(TEST_SHARE * len(cases)))
    return [cases[index] for index in sorted(order[num_test:])], [cases[index] for index in sorted(order[:num_test])]


def _by_solution(cases: list[Case]) -> list[list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.solution].append(case)
    return list(groups.values())


def _third_angles(step: int) -> Iterator[Case]:
    for larger in _angles(LEAST_ANGLE, STRAIGHT - 2 * LEAST_ANGLE, step):
        for smaller in _angles(LEAST_ANGLE, min(larger, STRAIGHT - LEAST_ANGLE - larger), step):
            asked = STRAIGHT - larger - smaller
            draw = partial(triangle_drawing, (larger, smaller, asked), (str(larger), str(smaller), "?"))
            parameters = ("third_angle", str(larger), str(smaller))
            yield Case(parameters, ANGLE_PROBLEM, str(asked), f"{STRAIGHT}-{larger}-{smaller}", draw)


def _isosceles(step: int) -> Iterator[Case]:
    """One base angle or the one at the top is given; marks show the equal sides."""
    for base in _angles(2 * LEAST_ANGLE, STRAIGHT // 2 - LEAST_ANGLE // 2, step):
        top = STRAIGHT - 2 * base
        yield Case(
            ("isosceles", "base", str(base)), ANGLE_PROBLEM, str(top), f"{STRAIGHT}-{base}-{base}",
            partial(isosceles_drawing, base, (str(base), "", "?")),
        )  # fmt: skip
        yield Case(
            ("isosceles", "top", str(top)), ANGLE_PROBLEM, str(base), f"{STRAIGHT - top}/2",
            partial(isosceles_drawing, base, ("?", "", str(top))),
        )  # fmt: skip


def _right_triangles(step: int) -> Iterator[Case]:
    """Two sides of a whole-number triple are given."""
    for sides in TRIPLES:
        first, second, longest = (side * side for side in sides)
        for asked, rationale in enumerate((f"{longest}-{second}", f"{longest}-{first}", f"{first}+{second}")):
            labels = tuple("?" if index == asked else str(side) for index, side in enumerate(sides))
            draw = partial(right_triangle_drawing, sides, labels)
            yield Case(("pythagoras", *labels), SIDE_PROBLEM, str(sides[asked]), rationale, draw)


def _circles(step: int) -> Iterator[Case]:
    """Circumference or area, from the radius or the diameter."""
    for radius in range(1, LARGEST_RADIUS + 1):
        for given, number in (("radius", radius), ("diameter", 2 * radius)):
            draw = partial(circle_drawing, str(number), given == "diameter")
            area, circumference = (
                ("circle", "area", given, str(number)),
                ("circle", "circumference", given, str(number)),
            )
            yield Case(area, AREA_PROBLEM, f"{radius * radius}*pi", f"{radius}*{radius}", draw)
            yield Case(circumference, CIRCUMFERENCE_PROBLEM, f"{2 * radius}*pi", f"2*{radius}", draw)


def _parallel_lines(step: int) -> Iterator[Case]:
    """Corresponding and alternate angles are equal, co-interior ones make 180 degrees."""
    for given in _angles(2 * LEAST_ANGLE, STRAIGHT - 2 * LEAST_ANGLE, step):
        for relation in ("corresponding", "alternate", "co-interior"):
            is_rest = relation == "co-interior"
            asked, rationale = (STRAIGHT - given, f"{STRAIGHT}-{given}") if is_rest else (given, str(given))
            draw = partial(parallel_drawing, given, relation)
            yield Case(("parallel_lines", relation, str(given)), ANGLE_PROBLEM, str(asked), rationale, draw)


def _angles(least: int, most: int, step: int) -> range:
    """The multiples of `step` from `least` to `most`."""
    return range(math.ceil(least / step) * step, most + 1, step)


def _whole_number_triples() -> tuple[tuple[int, int, int], ...]:
    sides = range(1, LARGEST_SIDE + 1)
    return tuple(
        (first, second, longest)
        for first in sides
        for second in sides
        for longest in sides
        if first < second < THINNEST * first and first * first + second * second == longest * longest
    )


TRIPLES = _whole_number_triples()
"""3-4-5 to 18-24-30: ten (7-24-25 is too thin)."""
CASES: dict[FigureKind, Callable[[int], Iterator[Case]]] = {
    "third_angle": _third_angles,
    "isosceles": _isosceles,
    "pythagoras": _right_triangles,
    "circle": _circles,
    "parallel_lines": _parallel_lines,
}
