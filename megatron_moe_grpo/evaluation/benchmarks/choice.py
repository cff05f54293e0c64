"""What all multiple-choice benchmarks share: the prompt of those that are tables of pictures, judgement and score."""

from collections.abc import Mapping, Sequence

from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.row_values import RawRow, optional_text
from megatron_moe_grpo.evaluation.benchmarks.scores import shares_by_facet
from megatron_moe_grpo.rewards.answer_format import Extraction
from megatron_moe_grpo.rewards.multiple_choice import extract_letter

DIRECT_LETTER = "Answer with the option's letter from the given choices directly."


class ChoiceBenchmark:
    """Letters read by `extract_letter`; shares of right answers, overall and by facet."""

    # A letter in a sentence; an answer that is cut off is counted in the result.
    max_new_tokens = 128
    counts_groups = False

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Whether the letter that the response chooses is the right one."""
        return extract_letter(response, question.options, extraction) == question.reference

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """Shares, overall and by facet."""
        return shares_by_facet(questions, is_correct)


def table_prompt(raw: RawRow, question: str, options: Sequence[str]) -> str:
    """VLMEvalKit's prompt for tables of pictures with options in columns (vlmeval/dataset/image_mcq.py)."""
    hint = optional_text(raw, "hint")
    lines = [f"Hint: {hint}"] * bool(hint) + [f"Question: {question}", "Options:", *options]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])


def facets_of(raw: RawRow, *columns: str) -> dict[str, str]:
    """Facets from the columns that the row has; `l2-category` and `l2_category` are one, whatever their case."""
    by_name = {name.lower().replace("-", "_"): name for name in raw}
    return {column: value for column in columns if column in by_name and (value := optional_text(raw, by_name[column]))}
