"""Partial credit where several options are right: the Jaccard index of the chosen and the right letters.

SATA-Bench (arXiv 2506.00643) scores "select all that apply" so.  Of Jaccard and F1 we take Jaccard: naming every option
then earns only the share of right ones, k / N, where F1 pays 2k / (N + k).
"""

import re
import string
from collections.abc import Sequence

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of
from megatron_moe_grpo.rewards.official_choice import PARTING

SEPARATOR = re.compile(r" ?(?:, ?and\b|,|;|/|&|、|，|\band\b) ?| ")
MARKED_LETTER = re.compile(r"\(?([A-Z])\)?\.?")
GLUED_LETTERS = re.compile(r"[A-Z]+")


class SoftMultipleChoice:
    """`jaccard_index` of the letters in the answer and those in the solution ("ACD", "A, C, D")."""

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        right = _strict_letters(solution, options)
        assert right is not None, "rows are checked when they are loaded"
        return jaccard_index(extract_letters(response, options, self._extraction), right)

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        if not options:
            return "the row has no options"
        if not _strict_letters(solution, options):
            return f"the solution {solution[:40]!r} is no list of letters of the {len(options)} options, each once"
        return None


def jaccard_index(chosen: frozenset[str], right: frozenset[str]) -> float:
    """|chosen and right| / |chosen or right|; 0.0 where nothing was chosen.  `right` is not empty."""
    return len(chosen & right) / len(chosen | right)


def extract_letters(response: str, options: Sequence[str], extraction: Extraction) -> frozenset[str]:
    """The letters that `response` chooses; empty where it cannot be read.

    `strict`: the answer is a list of capital letters of options and nothing else, each once: `A, C`, `A and C`,
    `(A) (C)`, `AC`.
    `official`: every option letter that stands as a word of its own, else those glued together, `AC`.
    """
    text = answer_of(response, extraction)
    if text is None:
        return frozenset()
    if extraction == "strict":
        return _strict_letters(text, options) or frozenset()
    letters = string.ascii_uppercase[: len(options)]
    words = text.translate(PARTING).split()
    standing = frozenset(word for word in words if len(word) == 1 and word in letters)
    glued = (frozenset(word) for word in words if GLUED_LETTERS.fullmatch(word) and set(word) <= set(letters))
    return standing or next(glued, frozenset())


def _strict_letters(text: str, options: Sequence[str]) -> frozenset[str] | None:
    """The letters of a clean list; None for anything else."""
    text = " ".join(text.split())
    if GLUED_LETTERS.fullmatch(text):
        found = list(text)
    else:
        matches = [MARKED_LETTER.fullmatch(part) for part in SEPARATOR.split(text)]
        if not all(matches):
            return None
        found = [match[1] for match in matches if match]
    letters = frozenset(found)
    is_clean = len(letters) == len(found) and letters <= set(string.ascii_uppercase[: len(options)])
    return letters if is_clean else None
