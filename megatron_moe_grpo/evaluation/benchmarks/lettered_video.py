"""What MVBench and MLVU share: options as "(A) ..", answers as texts, and a judgement of the first word."""

import re
from collections.abc import Sequence

from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import ChoiceBenchmark
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of
from megatron_moe_grpo.rewards.official_choice import infer_letter

# "a", "(a", "a)", "(a)" and "(a)is" are what their check of the first word accepts.
FIRST_WORD = re.compile(r"\(?([a-z])\)?|\(([a-z])\).*")


def lettered_prompt(instruction: str, question: str, options: Sequence[str]) -> str:
    """Instruction, question, "(A) first", ..., and the closing line, as one user turn."""
    lines = [f"({option[0]}) {option[3:]}" for option in options]
    return "\n".join([instruction, f"Question: {question}", "Options:", *lines, "Only give the best option."])


class LetteredVideoBenchmark(ChoiceBenchmark):
    """`official` looks at the first word, then reads as VLMEvalKit does."""

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the letter that the response chooses is the right one; an empty one chooses none."""
        if extraction == "strict":
            return super().is_correct(question, response, extraction)
        answer = answer_of(response, "official")
        if not answer:
            return False
        match = FIRST_WORD.fullmatch(answer.split()[0].lower().replace(".", ""))
        first = (match[1] or match[2]).upper() if match else None
        letters = [option[0] for option in question.options]
        letter = first if first in letters else infer_letter(answer, question.options)
        return letter == question.reference
