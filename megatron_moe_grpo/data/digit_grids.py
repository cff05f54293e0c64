"""Four-choice questions on 2x2 grids of real handwritten digits: the questions and their pictures, in memory.

Source: the 1,797 digits of 8x8 pixels that scikit-learn ships (UCI optical recognition of handwritten digits).
The letter of the answer is drawn first, uniformly, and the grid is built to fit it.  (Labels first, question second
would leave a prior: a small transformer reached 0.66 on such "how many" questions without looking.)
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

QuestionKind = Literal["where", "how_many", "largest"]
SplitName = Literal["train", "test", "pretrain"]
"""`pretrain`: more grids of the train split's digits, for the dense start; it shares no grid with `train`."""

KINDS: tuple[QuestionKind, ...] = ("where", "how_many", "largest")
CELLS = ("top-left", "top-right", "bottom-left", "bottom-right")
LETTERS = "ABCD"
NUM_DIGITS = 10
SIDE = 8
"""Pixels of a source digit, across and down."""
MAX_VALUE = 16
"""Grey levels of the source are 0 to 16."""
STREAMS: dict[SplitName, int] = {"train": 1, "test": 2, "pretrain": 5}
"""Random streams of the splits' grids."""
TRAIN_SHARE = 0.72
"""Share of the source digits of each class that train grids are made of; test grids use the others."""


@dataclass(frozen=True)
class Question:
    """A question and the grid that answers it."""

    kind: QuestionKind
    problem: str
    options: tuple[str, ...]
    """Texts without letters, four."""
    answer: int
    """Index of the right option."""
    digits: tuple[int, ...]
    """Digits of the grid, in the order of CELLS."""


@dataclass(frozen=True)
class Grid:
    """A question with its picture."""

    question: Question
    sources: tuple[int, ...]
    """Indices of the four source digits in scikit-learn's set."""
    picture: np.ndarray
    """Grey values in [0, 1], 16 x 16, float64."""


def draw_question(kind: QuestionKind, rng: np.random.Generator) -> Question:
    """A random question of `kind` whose right letter is uniform."""
    answer = int(rng.integers(len(LETTERS)))
    if kind == "where":
        options = rng.permutation(NUM_DIGITS)[: len(LETTERS)]
        digits, cell = rng.integers(0, NUM_DIGITS, len(CELLS)), int(rng.integers(len(CELLS)))
        digits[cell] = options[answer]
        problem = f"Which digit is in the {CELLS[cell]} cell?"
    elif kind == "how_many":
        options = rng.permutation(len(LETTERS))
        asked = int(rng.integers(NUM_DIGITS))
        digits = rng.integers(0, NUM_DIGITS - 1, len(CELLS))
        digits += digits >= asked  # any digit but the one asked for
        digits[rng.permutation(len(CELLS))[: options[answer]]] = asked
        problem = f"How many {asked}s are there?"
    else:
        options = rng.permutation(NUM_DIGITS)[: len(LETTERS)]
        digits = rng.integers(0, options[answer] + 1, len(CELLS))
        digits[rng.integers(len(CELLS))] = options[answer]
        problem = "Which is the largest digit?"
    return Question(kind, problem, tuple(str(option) for option in options), answer, tuple(digits.tolist()))


def split_sources(seed: int) -> dict[Literal["train", "test"], list[np.ndarray]]:
    """Indices of the source digits for each split and class: 72 % and 28 % of every class, disjoint."""
    labels = load_digits().target
    rng = np.random.default_rng([seed, 0])
    split: dict[Literal["train", "test"], list[np.ndarray]] = {"train": [], "test": []}
    for digit in range(NUM_DIGITS):
        of_class = rng.permutation(np.flatnonzero(labels == digit))
        num_train = round(TRAIN_SHARE * len(of_class))
        split["train"].append(of_class[:num_train])
        split["test"].append(of_class[num_train:])
    return split


def make_grids(split: SplitName, count: int, seed: int) -> list[Grid]:
    """`count` grids of one split; the three kinds in turn, then everything else at random.

    A pure function of its arguments.  Test shares no source digit with the other splits of the same seed.
    """
    pictures = load_digits().images / MAX_VALUE
    pools = split_sources(seed)["test" if split == "test" else "train"]
    rng = np.random.default_rng([seed, STREAMS[split]])
    grids = []
    for index in range(count):
        question = draw_question(KINDS[index % len(KINDS)], rng)
        sources = tuple(int(pools[digit][rng.integers(len(pools[digit]))]) for digit in question.digits)
        cells = pictures[list(sources)].reshape(2, 2, SIDE, SIDE)  # grid row, grid column, y, x
        picture = cells.transpose(0, 2, 1, 3).reshape(2 * SIDE, 2 * SIDE)
        grids.append(Grid(question, sources, picture))
    return grids
