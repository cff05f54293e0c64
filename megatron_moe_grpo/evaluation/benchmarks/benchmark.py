"""What a benchmark is: questions from its files, a judgement of one answer, and scores of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.rewards.answer_format import Extraction


@dataclass(frozen=True)
class Question:
    """One example as it is asked."""

    id: str
    """Unique in its benchmark."""
    prompt: str
    """The whole text, one `<image>` or `<video>` tag a visual, or none (then the visuals come first)."""
    visuals: tuple[VisualFiles, ...]
    reference: str
    """The right answer: an option's letter, "yes", a number."""
    options: tuple[str, ...] = ()
    """Ready strings "A. 3", "B. 4", ...; none: an open answer."""
    facets: Mapping[str, str] = field(default_factory=dict)
    """What its score is broken down by: {"category": "color"}."""
    group: str = ""
    """What it shares with other questions: its picture, its video, the question that it is a rolled copy of."""
    missing_file: str | None = None
    """A video that the folder does not hold: the question cannot be asked, and is refused or counts as wrong."""


@dataclass(frozen=True)
class Score:
    """One number of a benchmark's table."""

    name: str
    """`overall`, or facet and value: `category.color`."""
    value: float
    num_examples: int
    num_correct: int | None = None
    """Where the score is a share of right examples; None: a mean of shares, or points."""


class Benchmark(Protocol):
    """One benchmark.  Everything is local: nothing is downloaded."""

    name: str
    max_new_tokens: int
    """Longest answer, where the user asks for no other."""
    counts_groups: bool
    """Whether a group of questions is one example, right if all of them are."""

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """The questions in file order.

        Args:
            path: the benchmark's file, or its folder.
            image_root: folder that paths of pictures and videos start from; None: where the benchmark has them.
        Raises:
            DataError: names file, row and field.
        """
        ...

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the response is right: `official` as the benchmark's own tool reads it, or `strict`."""
        ...

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """The table, `overall` first.  `is_correct` has the id of every question."""
        ...
