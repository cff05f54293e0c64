"""The sections of analysis.json, from what the passes found."""

from collections.abc import Sequence
from typing import Any

from megatron_moe_grpo.evaluation.analysis.expert_use import task_section, utilisation_section
from megatron_moe_grpo.evaluation.analysis.measure import AnsweredRow, Measured, Subject
from megatron_moe_grpo.evaluation.analysis.modality import modality_counts, modality_section
from megatron_moe_grpo.evaluation.analysis.regret import routing_regret
from megatron_moe_grpo.evaluation.analysis.reward_curve import reward_section
from megatron_moe_grpo.evaluation.analysis.source import AnalysisSource
from megatron_moe_grpo.evaluation.run_files import read_metrics
from megatron_moe_grpo.mcore.moe_layers import router_sizes

DENSE = "the model is dense: it has no experts to choose"


def analysis_sections(source: AnalysisSource, found: Measured, subject: Subject) -> dict[str, Any]:
    """Each section's values, or under `left_out` the reason why it is not there."""
    sections: dict[str, Any] = {"accuracy": _accuracy(found.rows)}
    left_out: dict[str, str] = {}
    rewards = None
    if source.run_folder is None:
        left_out["rewards"] = "a checkpoint by itself has no metrics.jsonl; analyse the run's folder"
    else:
        rewards = reward_section(read_metrics(source.run_folder))
        if rewards is None:
            left_out["rewards"] = "metrics.jsonl has no reward_mean: a supervised run, or one without a step"
    if rewards is not None:
        sections["rewards"] = rewards
    if found.agreement is None:
        left_out |= dict.fromkeys(("utilisation", "tasks", "modality", "agreement", "regret"), DENSE)
        return sections | {"left_out": left_out}
    by_task = {task: counts_L2N.sum(dim=1) for task, counts_L2N in found.counts_by_task.items()}
    sections["utilisation"] = utilisation_section(sum(by_task.values()))
    if len(by_task) > 1:
        sections["tasks"] = task_section(by_task)
    else:
        left_out["tasks"] = f"all rows are of one task ({next(iter(by_task))}): there is nothing to compare"
    sections["modality"] = _modality(source, found, subject)
    sections["agreement"] = found.agreement.section()
    sections["regret"] = _regret(found.rows)
    return sections | {"left_out": left_out}


def _accuracy(rows: Sequence[AnsweredRow]) -> dict[str, Any]:
    """Share of right answers under top-K routing, and by task: [right, rows]."""
    by_task: dict[str, list[int]] = {}
    for row in rows:
        right_and_all = by_task.setdefault(row.row.row.problem_type, [0, 0])
        right_and_all[0] += row.answer.is_correct
        right_and_all[1] += 1
    return {"top_k": sum(row.answer.is_correct for row in rows) / len(rows), "by_task": dict(sorted(by_task.items()))}


def _modality(source: AnalysisSource, found: Measured, subject: Subject) -> dict[str, Any]:
    """Scores of the analysed rows, and of training where the checkpoint has its counts."""
    counts_L2N = sum(found.counts_by_task.values())
    fraction, num_active = source.routing.guidance_fraction, router_sizes(subject.model.config).num_active
    trained = source.trained_counts()
    return {
        "rows": modality_section(modality_counts(counts_L2N[:, 1], counts_L2N[:, 0]), fraction, num_active),
        "training": None if trained is None else modality_section(trained, fraction, num_active),
    }


def _regret(rows: Sequence[AnsweredRow]) -> dict[str, Any]:
    """Over all rows, and by task."""

    def of(part: Sequence[AnsweredRow]) -> dict[str, Any]:
        return routing_regret(
            [row.answer.is_correct for row in part], [[route.is_correct for route in row.routes] for row in part]
        )

    tasks = sorted({row.row.row.problem_type for row in rows})
    by_task = {task: of([row for row in rows if row.row.row.problem_type == task]) for task in tasks}
    return of(rows) | {"by_task": by_task}
