"""Rows in the formats that training reads, judged by training's rewards: the demo's digit grids, counting and geometry.

Any file of a user's own rows may be read under these names; the names differ in the longest answer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.data.prompt_templates import TEMPLATES, question_text
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.scores import shares_by_facet
from megatron_moe_grpo.rewards.answer_format import Extraction
from megatron_moe_grpo.rewards.judge import Judge


class OwnRows:
    """Shares overall and by type of problem."""

    counts_groups = False

    def __init__(self, name: str, max_new_tokens: int) -> None:
        self.name, self.max_new_tokens = name, max_new_tokens
        self._judges = {extraction: Judge(RewardConfig(extraction=extraction)) for extraction in ("official", "strict")}

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """The rows as `data.train` would read them."""
        loaded = load_rows(path, image_root, known_problem=self._judges["strict"].problem_with, check_images=False)
        return [
            Question(
                id=row.id,
                prompt=question_text(TEMPLATES["plain"], row),
                visuals=row.visuals,
                reference=row.solution,
                options=row.options,
                facets={"problem_type": row.problem_type},
            )
            for row in loaded.rows
        ]

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the reward of the question's type takes the response for right."""
        return self._judges[extraction](response, _row(question)).is_correct

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """Shares, overall and by type."""
        return shares_by_facet(questions, is_correct)


def _row(question: Question) -> Row:
    """The part of a row that judges read."""
    kind = question.facets["problem_type"]
    return Row(question.id, question.prompt, question.options, question.reference, kind, question.visuals)
