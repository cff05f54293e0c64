"""GeoQA: R1-V's 754 geometry questions.

File: geoqa_test_prompts.jsonl of R1-V (image_path, question, ground_truth such as "140°"); `image_path` starts from the
file's own folder, or from --image-root.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.r1v_questions import r1v_questions
from megatron_moe_grpo.evaluation.benchmarks.scores import shares_by_facet
from megatron_moe_grpo.rewards.answer_format import Extraction
from megatron_moe_grpo.rewards.math_answer import MathAnswer

# R1-V, src/eval/test_qwen2vl_geoqa.py.
PROMPT = (
    "{question} Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
)


class GeoQA:
    """`official`: Math-Verify's reading of the answer, its last formula; `strict`: the reward of geometry."""

    name = "geo_qa"
    max_new_tokens = 1024
    counts_groups = False

    def __init__(self) -> None:
        self._judges = {
            extraction: MathAnswer(RewardConfig(extraction=extraction)) for extraction in ("official", "strict")
        }

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Raises DataError: also an empty ground truth.  `strict` finds one that is no formula in equal texts."""
        return r1v_questions(path, image_root, PROMPT, lambda truth: self._judges["official"].problem_with(truth, ()))

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the response's value is the right one."""
        return self._judges[extraction](response, question.reference, ()) == 1.0

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """One share."""
        return shares_by_facet(questions, is_correct)
