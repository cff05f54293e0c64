"""The reading of Video-MME's and LongVideoBench's own tools: the first capital that is an option's letter."""

import re

from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import ChoiceBenchmark
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of

PREFIXES = re.compile(
    r"The (?:best|correct) (?:answer|option) is|The answer is|The answer|(?:Best answer|Best option|Answer|Option):"
)


def first_letter(response: str, letters: str) -> str | None:
    """The first of `letters` anywhere in the answer, once phrases that announce it are taken out.

    Whatever word it begins: "Because" is B.  Nothing is drawn at random where there is none.
    """
    answer = answer_of(response, "official")
    if answer is None:
        return None
    match = re.search(f"[{letters}]", PREFIXES.sub("", answer))
    return match[0] if match else None


class FirstLetterBenchmark(ChoiceBenchmark):
    """`official` reads `first_letter`."""

    letters: str

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the letter that the response chooses is the right one."""
        if extraction == "official":
            return first_letter(response, self.letters) == question.reference
        return super().is_correct(question, response, extraction)
