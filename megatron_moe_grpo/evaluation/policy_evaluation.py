"""Accuracy of the model being trained, on held-out rows, as it will be used: top-K experts and greedy tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_moe_grpo.evaluation.accuracy import AccuracyReport, ExampleRecord
from megatron_moe_grpo.evaluation.expert_analysis import utilisation_entropy_nats
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import EncodedRow


@dataclass(frozen=True)
class PolicyEvaluation:
    """What one pass over the held-out rows found, the same on every rank."""

    records: list[ExampleRecord]
    counts_by_type: dict[str, list[list[float]]]
    """Deterministic top-K choices [L, N] of vision and text tokens, by problem type; empty for a dense model."""

    def metrics(self, blank: "PolicyEvaluation | None" = None) -> dict:
        """The eval_… entries of metrics.jsonl."""
        report = AccuracyReport.from_records(self.records, None if blank is None else blank.records)
        values: dict = {
            "eval_accuracy": report.overall.value,
            "eval_num_examples": report.overall.num_examples,
            "eval_accuracy_by_type": {name: accuracy.value for name, accuracy in report.by_type.items()},
        }
        if report.blank is not None:
            values["eval_blank_accuracy"] = report.blank.value
        if self.counts_by_type:
            counts_LN = torch.tensor(list(self.counts_by_type.values())).sum(dim=0)
            values["eval_expert_counts_LN"] = counts_LN.tolist()
            values["eval_expert_counts_by_type"] = self.counts_by_type
            values["eval_utilisation_entropy_nats"] = utilisation_entropy_nats(counts_LN)
        return values


def evaluate_policy(
    model: VisionLanguageModel,
    layout: ParallelLayout,
    rows: Sequence[EncodedRow],
    processing: Processing,
    settings: DecodeSettings,
    judge: Judge,
    prompts_per_forward: int,
    blank_images: bool = False,
) -> PolicyEvaluation:
    """Answers every row once; all ranks call it together."""
    records: list[ExampleRecord] = []
    counts_by_type = {}
    for problem_type in sorted({row.row.problem_type for row in rows}):
        of_type = [row for row in rows if row.row.problem_type == problem_type]
        # Ranks stay in step, so every rank takes equally many rows; the fillers' answers are not counted.
        num_fillers = -len(of_type) % layout.data_size
        step_rows = StepRows([*of_type, *of_type[:1] * num_fillers], first_stream=0)
        answers = collect_rollouts(
            model, layout, step_rows, processing, settings, judge, 1, prompts_per_forward, blank_images
        )
        share = list(zip(answers.texts, answers.judgements, strict=True))
        for row, (text, judgement) in zip(of_type, _gather(share, layout), strict=False):
            records.append(ExampleRecord(row.row.id, problem_type, text, judgement.is_correct))
        if answers.responses.counts is not None:
            counts_LN = layout.sum_over_data(answers.responses.counts.top_k_L2N.sum(dim=1))
            counts_by_type[problem_type] = counts_LN.tolist()
    return PolicyEvaluation(records, counts_by_type)


def _gather(share: list, layout: ParallelLayout) -> list:
    """Every data-parallel rank's list, in rank order, as one."""
    parts: list[list] = [[] for _ in range(layout.data_size)]
    dist.all_gather_object(parts, share, group=layout.data_group)
    return [item for part in parts for item in part]
