"""Accuracy of a text that must be read off or recalled: OCR, names, words."""

import unicodedata
from collections.abc import Sequence

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of

AROUND = " \t\n.\"'`*“”‘’。"


class TextMatch:
    """1.0 if the answer is the solution, else 0.0.

    Both are compared without case, without full stops and quotes around them, with each run of white space as one
    space, and in Unicode's compatible composed form (NFKC: full-width letters are letters).
    `official`: the solution may stand anywhere in the answer, as OCRBench scores it.
    """

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        answer = answer_of(response, self._extraction)
        if answer is None:
            return 0.0
        wanted, given = plain_text(solution), plain_text(answer)
        return float(wanted in given if self._extraction == "official" else wanted == given)

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        return None if plain_text(solution) else f"the solution {solution[:40]!r} holds no text to compare with"


def plain_text(text: str) -> str:
    """`text` as it is compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(AROUND)
