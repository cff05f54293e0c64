"""The rows that are shown with their pictures, answers and routing: a few of each task, right and wrong ones."""

from collections.abc import Sequence
from typing import Any

from megatron_moe_grpo.evaluation.analysis.example_routing import example_routing
from megatron_moe_grpo.evaluation.analysis.measure import AnsweredRow, Subject
from megatron_moe_grpo.evaluation.analysis.recorded_forward import recorded_forward
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.rollout.prompts import prepare_prompts


def choose_examples(rows: Sequence[AnsweredRow], count: int) -> list[AnsweredRow]:
    """Up to `count` rows: the tasks take turns, right and wrong answers within them too; in the order of the file.

    Not a sample: rare mistakes are shown as often as common ones.
    """
    groups: dict[tuple[bool, str], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.answer.is_correct, row.row.row.problem_type), []).append(place)
    chosen: list[int] = []
    waiting = [groups[key] for key in sorted(groups)]
    while waiting and len(chosen) < count:
        chosen += [places.pop(0) for places in waiting][: count - len(chosen)]
        waiting = [places for places in waiting if places]
    return [rows[place] for place in sorted(chosen)]


def example_values(subject: Subject, answered: AnsweredRow) -> dict[str, Any]:
    """One row of analysis.json: question, answers and, in a model with experts, `example_routing`."""
    row = answered.row.row
    return {
        "id": row.id,
        "task": row.problem_type,
        "problem": row.problem,
        "options": list(row.options),
        "solution": row.solution,
        "response": answered.answer.response,
        "is_correct": answered.answer.is_correct,
        "routes": [{"response": route.response, "is_correct": route.is_correct} for route in answered.routes],
        "routing": _routing(subject, answered),
    }


def _routing(subject: Subject, answered: AnsweredRow) -> dict[str, Any] | None:
    sizes = router_sizes(subject.model.config)
    if sizes is None:
        return None
    prompts = prepare_prompts([answered.row], len(answered.row.prompt_ids), subject.processing)
    batch = prompts.batch(0, 1)
    with decoding_mode(subject.model):
        features_FD = None if batch.pixel_values is None else subject.model.image_features(batch)
        mask_L2N = subject.top_k.is_allowed_L2N
        saw = recorded_forward(
            subject.model, subject.layout, batch, sizes, features_FD=features_FD, is_allowed_L2N=mask_L2N
        )
    return example_routing(saw.logits_BSLN[0], saw.experts_BSLK[0], batch.is_real_BS[0], batch.is_vision_BS[0])
