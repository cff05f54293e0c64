"""SuperCLEVR: R1-V's 200 counting questions on pictures unlike those it trains on.

File: superclevr_test200_counting_problems.jsonl of R1-V (image_path, question, ground_truth); `image_path` starts from
the file's own folder, or from --image-root.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.r1v_questions import r1v_questions
from megatron_moe_grpo.evaluation.benchmarks.scores import shares_by_facet
from megatron_moe_grpo.rewards.answer_format import Extraction
from megatron_moe_grpo.rewards.counting import Counting

# R1-V, src/eval/test_qwen2vl_counting_superclevr.py.
PROMPT = (
    "{question} First output the thinking process in <think> </think> and final answer (number) in <answer> </answer> "
    "tags."
)
TAGGED_NUMBER = re.compile(r"<answer>\s*(\d+)\s*</answer>")


class SuperCLEVR:
    """`official`: the first number alone in <answer> tags; `strict`: the reward of counting."""

    name = "super_clevr"
    max_new_tokens = 256
    counts_groups = False

    def __init__(self) -> None:
        self._strict = Counting(RewardConfig())

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Raises DataError: also a ground truth that is no count."""
        return r1v_questions(path, image_root, PROMPT, lambda truth: self._strict.problem_with(truth, ()))

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the response gives the count."""
        if extraction == "strict":
            return self._strict(response, question.reference, ()) == 1.0
        match = TAGGED_NUMBER.search(response)
        return match is not None and int(match[1]) == int(question.reference)

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """One share."""
        return shares_by_facet(questions, is_correct)
