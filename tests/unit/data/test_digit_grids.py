from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.datasets import load_digits

from megatron_moe_grpo.data.digit_grids import CELLS, Grid, Question, draw_question, make_grids, split_sources

CHI_SQUARE_3_DF = 16.27
"""99.9 % quantile, 3 degrees of freedom."""


@pytest.fixture(scope="module")
def train_grids() -> list[Grid]:
    return make_grids("train", 8000, seed=0)


@pytest.fixture(scope="module")
def held_out_grids() -> list[Grid]:
    return make_grids("test", 2000, seed=0)


def _truth(question: Question) -> str:
    """The answer's text, worked out from the digits and the question's words alone."""
    words = question.problem.rstrip("?").split()
    if words[:2] == ["How", "many"]:
        return str(question.digits.count(int(words[2].rstrip("s"))))
    if words[-2:] == ["largest", "digit"]:
        return str(max(question.digits))
    return str(question.digits[CELLS.index(words[-2])])


def test_every_question_has_its_true_answer_and_no_other(train_grids: list[Grid], held_out_grids: list[Grid]) -> None:
    for grid in train_grids + held_out_grids:
        question = grid.question
        assert question.options[question.answer] == _truth(question)
        assert len(set(question.options)) == 4
        if question.kind == "how_many":
            assert sorted(question.options) == ["0", "1", "2", "3"]


def test_pictures_show_the_digits_asked_about(train_grids: list[Grid], held_out_grids: list[Grid]) -> None:
    source = load_digits()
    for grid in train_grids[:300] + held_out_grids[:300]:
        assert tuple(source.target[list(grid.sources)]) == grid.question.digits
        for cell, index in enumerate(grid.sources):
            top, left = 8 * (cell // 2), 8 * (cell % 2)
            np.testing.assert_array_equal(grid.picture[top : top + 8, left : left + 8], source.images[index] / 16)


def test_train_and_test_share_no_source_digit(train_grids: list[Grid], held_out_grids: list[Grid]) -> None:
    pixels = load_digits().images.reshape(1797, 64)
    in_train = {index for grid in train_grids for index in grid.sources}
    in_test = {index for grid in held_out_grids for index in grid.sources}
    assert not in_train & in_test
    # Nor two copies of the same picture under two indices.
    assert not {pixels[index].tobytes() for index in in_train} & {pixels[index].tobytes() for index in in_test}
    assert len(in_train) + len(in_test) == 1797  # every source digit is used


def test_split_sources_splits_every_class_alike() -> None:
    split, labels = split_sources(seed=0), load_digits().target
    for digit in range(10):
        train, test = split["train"][digit], split["test"][digit]
        assert set(labels[train]) | set(labels[test]) == {digit}
        assert len(train) + len(test) == (labels == digit).sum()
        assert len(train) / (len(train) + len(test)) == pytest.approx(0.72, abs=0.003)


@pytest.mark.parametrize("kind", ["where", "how_many", "largest"])
def test_right_letters_are_uniform(train_grids: list[Grid], kind: str) -> None:
    letters = [grid.question.answer for grid in train_grids if grid.question.kind == kind]
    expected = len(letters) / 4
    assert len(letters) in (2666, 2667)
    assert sum((letters.count(letter) - expected) ** 2 / expected for letter in range(4)) < CHI_SQUARE_3_DF


def _blind_accuracy(train_grids: list[Grid], held_out_grids: list[Grid], by_value: bool) -> float:
    """Accuracy of the best answer to each question text without its picture, learnt on train.

    By letter: the commonest right letter.  By value: of the four texts offered, the one most often right when offered.
    """
    right, offered = defaultdict(Counter), defaultdict(Counter)
    for grid in train_grids:
        question = grid.question
        names = question.options if by_value else tuple("ABCD")
        right[question.problem][names[question.answer]] += 1
        offered[question.problem].update(names)
    hits = 0
    for grid in held_out_grids:
        question = grid.question
        names = question.options if by_value else tuple("ABCD")
        rates = [right[question.problem][name] / offered[question.problem][name] for name in names]
        hits += int(np.argmax(rates)) == question.answer
    return hits / len(held_out_grids)


@pytest.mark.parametrize("by_value", [False, True])
def test_a_blind_majority_answer_scores_as_chance(
    train_grids: list[Grid], held_out_grids: list[Grid], by_value: bool
) -> None:
    # Chance 0.25, standard error 0.0097 on 2,000.  Measured on seeds 0 to 4: by letter 0.2625, 0.239, 0.248, 0.264,
    # 0.2625; by value 0.249, 0.2425, 0.23, 0.256, 0.2445.
    assert 0.22 < _blind_accuracy(train_grids, held_out_grids, by_value) <= 0.28


def test_make_grids_is_a_function_of_its_arguments(train_grids: list[Grid]) -> None:
    again = make_grids("train", 50, seed=0)
    first = train_grids[:50]
    assert [(grid.question, grid.sources) for grid in again] == [(grid.question, grid.sources) for grid in first]
    other = make_grids("train", 50, seed=1)
    assert [grid.sources for grid in other] != [grid.sources for grid in again]


def test_options_come_in_every_order(train_grids: list[Grid]) -> None:
    counts = Counter(grid.question.options for grid in train_grids if grid.question.kind == "how_many")
    assert len(counts) == 24
    # 23 degrees of freedom: 99.9 % quantile 49.7.
    expected = counts.total() / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7


def test_draw_question_covers_every_place_and_digit() -> None:
    rng = np.random.default_rng(0)
    assert len({draw_question("where", rng).problem for _ in range(100)}) == 4
    assert len({draw_question("how_many", rng).problem for _ in range(200)}) == 10
    assert {draw_question("largest", rng).problem for _ in range(10)} == {"Which is the largest digit?"}
