import math
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from megatron_moe_grpo.data.geometry_figures import KINDS, TRIPLES, Figure, make_figures, split_cases
from megatron_moe_grpo.data.geometry_picture import label_cells
from megatron_moe_grpo.errors import DataError

NUM_TRAIN, NUM_TEST = 2000, 500


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return make_figures("train", NUM_TRAIN, seed=0) + make_figures("test", NUM_TEST, seed=0)


def _of_kind(figures: list[Figure], kind: str) -> list[Figure]:
    found = [figure for figure in figures if figure.kind == kind]
    assert len(found) > 100
    return found


def _numbers(figure: Figure) -> list[int]:
    """What the picture says, the question mark left out."""
    return [int(label.text) for label in figure.drawing.labels if label.text != "?"]


def _corner_angle(corners: list[tuple[float, float]], index: int) -> float:
    at, one, other = (corners[(index + step) % 3] for step in (0, 1, 2))
    first = math.atan2(one[1] - at[1], one[0] - at[0])
    second = math.atan2(other[1] - at[1], other[0] - at[0])
    return abs((math.degrees(first - second) + 180) % 360 - 180)


def _value(rationale: str) -> float:
    """Works out "180-60-80", "140/2", "9+16" or "5*5"."""
    for sign in "+-*/":
        if sign in rationale:
            first, *others = (float(number) for number in rationale.split(sign))
            for other in others:
                first = {"+": first + other, "-": first - other, "*": first * other, "/": first / other}[sign]
            return first
    return float(rationale)


@pytest.mark.parametrize("kind", ["third_angle", "isosceles"])
def test_triangles_show_their_true_angles(figures: list[Figure], kind: str) -> None:
    for figure in _of_kind(figures, kind):
        corners = list(figure.drawing.lines[0][:3])
        for label in figure.drawing.labels:
            nearest = min(range(3), key=lambda index: math.dist(corners[index], label.middle))
            written = int(figure.case.solution if label.text == "?" else label.text)
            assert _corner_angle(corners, nearest) == pytest.approx(written, abs=1e-6)


def test_isosceles_marks_stand_on_equal_sides(figures: list[Figure]) -> None:
    for figure in _of_kind(figures, "isosceles"):
        outline, *ticks = figure.drawing.lines
        middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairwise(outline)]
        lengths = [math.dist(a, b) for a, b in pairwise(outline)]
        marked = [
            lengths[min(range(3), key=lambda side: math.dist(middles[side], ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)))]
            for a, b in ticks
        ]
        assert marked[0] == pytest.approx(marked[1])


def test_right_triangles_obey_pythagoras(figures: list[Figure]) -> None:
    for figure in _of_kind(figures, "pythagoras"):
        legs_and_longest = [
            int(figure.case.solution if label.text == "?" else label.text) for label in figure.drawing.labels
        ]
        first, second, longest = legs_and_longest
        assert first**2 + second**2 == longest**2
        outline = figure.drawing.lines[0]
        # Drawn to scale: every side is as long as its number says.
        drawn = [
            math.dist(outline[0], outline[1]),
            math.dist(outline[0], outline[2]),
            math.dist(outline[1], outline[2]),
        ]
        assert [length / drawn[2] for length in drawn] == pytest.approx(
            [number / longest for number in legs_and_longest]
        )


def test_circles_have_the_area_and_circumference_of_their_radius(figures: list[Figure]) -> None:
    for figure in _of_kind(figures, "circle"):
        (number,) = _numbers(figure)
        start, end = figure.drawing.lines[0]
        circle = figure.drawing.circles[0]
        is_diameter = math.dist(start, end) > 1.5 * circle.radius
        radius = number // 2 if is_diameter else number
        value = math.pi * radius**2 if "area" in figure.case.problem else 2 * math.pi * radius
        factor, pi = figure.case.solution.split("*")
        assert (int(factor) * math.pi, pi) == (pytest.approx(value), "pi")


def test_parallel_lines_show_their_true_angles(figures: list[Figure]) -> None:
    relations = Counter()
    for figure in _of_kind(figures, "parallel_lines"):
        upper, lower, (foot, head) = figure.drawing.lines
        slope = math.degrees(math.atan2(foot[1] - head[1], head[0] - foot[0]))
        for label in figure.drawing.labels:
            x, y = label.middle
            height = min((upper[0][1], lower[0][1]), key=lambda line: abs(line - y))
            at_label = foot[0] + (head[0] - foot[0]) * (foot[1] - y) / (foot[1] - head[1])
            is_same = (x > at_label) == (y < height)
            written = int(figure.case.solution if label.text == "?" else label.text)
            assert written == pytest.approx(slope if is_same else 180 - slope, abs=1e-6)
        relations[figure.case.parameters[1]] += 1
    assert set(relations) == {"corresponding", "alternate", "co-interior"}


def test_rationales_lead_to_the_solution(figures: list[Figure]) -> None:
    for figure in figures:
        value = _value(figure.case.rationale)
        if figure.kind == "pythagoras":
            value = math.sqrt(value)
        assert value == int(figure.case.solution.removesuffix("*pi"))


def test_numbers_stand_in_the_picture_and_not_in_the_words(figures: list[Figure]) -> None:
    assert not any(character.isdigit() for figure in figures for character in figure.case.problem)
    assert len({figure.case.problem for figure in figures}) == 4


def test_labels_never_cover_one_another(figures: list[Figure]) -> None:
    for figure in figures:
        cells = [cell for label in figure.drawing.labels for cell in label_cells(label)]
        assert len(set(cells)) == len(cells)


def test_train_and_test_share_no_parameters(figures: list[Figure]) -> None:
    train = {figure.case.parameters for figure in figures[:NUM_TRAIN]}
    test = {figure.case.parameters for figure in figures[NUM_TRAIN:]}
    pretrain = {figure.case.parameters for figure in make_figures("pretrain", NUM_TRAIN, seed=0)}
    assert not (train | pretrain) & test


@pytest.mark.parametrize("step", [1, 5, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_split_cases_gives_every_kind_figures_in_both_splits(kind: str, step: int) -> None:
    for seed in range(4):
        train, test = ([case.parameters for case in cases] for cases in split_cases(kind, step, seed))
        assert len(set(train + test)) == len(train) + len(test)
        assert 1 <= len(test) <= len(train) / 3


def test_solutions_of_a_kind_are_uniform(figures: list[Figure]) -> None:
    counts = Counter(figure.case.solution for figure in _of_kind(figures[:NUM_TRAIN], "third_angle"))
    assert set(counts) == {case.solution for case in split_cases("third_angle", 10, seed=0)[0]}
    assert len(counts) == 13
    expected = counts.total() / 13
    # 99.9 % quantile of chi-square, 12 degrees of freedom.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 32.9


def test_a_blind_majority_answer_is_mostly_wrong(figures: list[Figure]) -> None:
    by_problem: dict[str, Counter[str]] = defaultdict(Counter)
    for figure in figures[:NUM_TRAIN]:
        by_problem[figure.case.problem][figure.case.solution] += 1
    best = {problem: counts.most_common(1)[0][0] for problem, counts in by_problem.items()}
    share = sum(best[figure.case.problem] == figure.case.solution for figure in figures[NUM_TRAIN:]) / NUM_TEST
    assert share < 0.2


def test_triples_are_whole_and_not_thin() -> None:
    assert (3, 4, 5) in TRIPLES
    assert (5, 12, 13) in TRIPLES
    assert (7, 24, 25) not in TRIPLES
    assert len(TRIPLES) == 10


def test_make_figures_is_a_function_of_its_arguments(figures: list[Figure]) -> None:
    for seed, is_same in ((0, True), (1, False)):
        again = [(figure.case.parameters, figure.drawing) for figure in make_figures("train", 20, seed)]
        assert (again == [(figure.case.parameters, figure.drawing) for figure in figures[:20]]) == is_same
    (kind,) = {figure.kind for figure in make_figures("train", 20, seed=0, kinds=("circle",))}
    assert kind == "circle"
    angles = {int(f.case.solution) % 5 for f in make_figures("train", 50, seed=0, kinds=("third_angle",), angle_step=5)}
    assert angles == {0}


@pytest.mark.parametrize(("kinds", "step"), [((), 10), (("circle",), 0), (("circle",), 36), (("circle",), 7)])
def test_make_figures_refuses_what_cannot_be_drawn(kinds: tuple, step: int) -> None:
    with pytest.raises(DataError, match="no figure can be drawn"):
        make_figures("train", 1, seed=0, kinds=kinds, angle_step=step)
