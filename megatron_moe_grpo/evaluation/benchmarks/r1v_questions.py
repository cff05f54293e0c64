"""R1-V's lists of test prompts: one JSON object a line with `image_path`, `question` and `ground_truth`."""

from collections.abc import Callable
from pathlib import Path

from megatron_moe_grpo.data.row_texts import number_as_text
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.row_pictures import pictures
from megatron_moe_grpo.evaluation.benchmarks.row_values import benchmark_rows, text


def r1v_questions(
    path: Path, image_root: Path | None, prompt: str, problem_with: Callable[[str], str | None]
) -> list[Question]:
    """Questions in file order, known by their line.

    Args:
        prompt: holds `{question}`.
        problem_with: why no answer could be judged against a ground truth, or None.
    Raises:
        DataError: see `benchmark_rows` and `pictures`; a ground truth with a problem.
    """
    questions = []
    for raw, place in benchmark_rows(path):
        reference = number_as_text(raw.get("ground_truth"), "ground_truth", place).strip()
        problem = problem_with(reference)
        if problem is not None:
            raise place.problem("ground_truth", problem)
        questions.append(
            Question(
                id=str(place.line_number),
                prompt=prompt.replace("{question}", text(raw, "question", place)),
                visuals=pictures(raw, image_root or path.parent, place),
                reference=reference,
            )
        )
    return questions
