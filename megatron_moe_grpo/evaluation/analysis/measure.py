"""The passes over the rows: answers and experts under top-K, then under G sampled routes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_moe_grpo.evaluation.analysis.agreement import AgreementSums
from megatron_moe_grpo.evaluation.analysis.recorded_forward import recorded_forward, with_responses
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import EncodedRow
from megatron_moe_grpo.rollout.records import RolloutBatch

# Training counts its rollouts from 0: routes that are drawn here share no noise with them.
FIRST_STREAM = 2**40


@dataclass(frozen=True, eq=False)
class Subject:
    """The model under analysis and what it is asked with."""

    model: VisionLanguageModel
    layout: ParallelLayout
    processing: Processing
    judge: Judge
    top_k: DecodeSettings
    sampled: DecodeSettings
    num_routes: int
    """G."""
    sequences_per_forward: int


@dataclass(frozen=True)
class Answer:
    """One response and its judgement."""

    response: str
    is_correct: bool


@dataclass
class AnsweredRow:
    """A row with its answer under top-K routing and under each sampled route (none for a dense model)."""

    row: EncodedRow
    answer: Answer
    routes: list[Answer]


@dataclass
class Measured:
    """What the passes found."""

    rows: list[AnsweredRow]
    """In the order of the file."""
    counts_by_task: dict[str, Tensor]
    """counts_L2N of deterministic top-K choices by `problem_type`, index 1: vision; empty for a dense model."""
    agreement: AgreementSums | None
    """None for a dense model."""


def measure(subject: Subject, rows: Sequence[EncodedRow]) -> Measured:
    """Every row once under top-K and, in a model with experts, G times under sampled routes; tokens are greedy."""
    sizes = router_sizes(subject.model.config)
    found = Measured([], {}, None if sizes is None else AgreementSums(sizes))
    size = subject.sequences_per_forward
    with tqdm(total=len(rows), desc="rows", disable=None) as bar:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            answers = _answers_by_top_k(subject, part, found)
            routes = [[] for _ in part] if sizes is None else _answers_by_routes(subject, part, start, found)
            found.rows += [AnsweredRow(*items) for items in zip(part, answers, routes, strict=True)]
            bar.update(len(part))
    return found


def _answers_by_top_k(subject: Subject, rows: Sequence[EncodedRow], found: Measured) -> list[Answer]:
    """Each task apart: counts come as sums over a batch."""
    answers: dict[str, Answer] = {}
    for task in sorted({row.row.problem_type for row in rows}):
        of_task = [row for row in rows if row.row.problem_type == task]
        batch = _collect(subject, of_task, subject.top_k, 0, group_size=1)
        answers |= {row.row.id: answer for row, answer in zip(of_task, _answers(batch), strict=True)}
        if batch.responses.counts is not None:
            counts_L2N = batch.responses.counts.top_k_L2N.cpu()
            found.counts_by_task[task] = found.counts_by_task.get(task, torch.zeros_like(counts_L2N)) + counts_L2N
    return [answers[row.row.id] for row in rows]


def _answers_by_routes(subject: Subject, rows: Sequence[EncodedRow], first: int, found: Measured) -> list[list[Answer]]:
    """A route's noise depends on the row's place in the file and on nothing else."""
    num_routes = subject.num_routes
    batch = _collect(subject, rows, subject.sampled, FIRST_STREAM + first * num_routes, num_routes)
    _add_agreement(subject, batch, found.agreement)
    answers = _answers(batch)
    return [answers[start : start + num_routes] for start in range(0, len(answers), num_routes)]


def _collect(
    subject: Subject, rows: Sequence[EncodedRow], settings: DecodeSettings, first_stream: int, group_size: int
) -> RolloutBatch:
    prompts_per_forward = max(1, subject.sequences_per_forward // group_size)
    return collect_rollouts(
        subject.model, subject.layout, StepRows(rows, first_stream), subject.processing, settings, subject.judge,
        group_size, prompts_per_forward,
    )  # fmt: skip


def _add_agreement(subject: Subject, batch: RolloutBatch, agreement: AgreementSums) -> None:
    """Replays the sampled routes to see the logits that each selection was made from."""
    group_size, prompts = batch.group_size, batch.prompts
    step = max(1, subject.sequences_per_forward // group_size)
    sizes = router_sizes(subject.model.config)
    with decoding_mode(subject.model):
        for start in range(0, len(prompts.rows), step):
            stop = min(start + step, len(prompts.rows))
            of_prompts = prompts.batch(start, stop)
            index_B = torch.arange(start * group_size, stop * group_size, device=batch.stream_B.device)
            responses = batch.responses.select(index_B)
            sequences = with_responses(of_prompts.repeated(group_size), responses)
            has_visual = of_prompts.pixel_values is not None
            features_FD = subject.model.image_features(of_prompts) if has_visual else None
            saw = recorded_forward(
                subject.model, subject.layout, sequences, sizes, features_FD=features_FD, trace=responses.trace
            )
            is_counted_BS = sequences.is_real_BS.clone()
            if not subject.sampled.explores_prompt:
                # The prompt's own experts were top-K, but for the position that produces the answer.
                is_counted_BS[:, : prompts.num_positions - 1] = False
            agreement.add(saw.experts_BSLK, saw.top_k_BSLK, is_counted_BS, sequences.is_vision_BS)


def _answers(batch: RolloutBatch) -> list[Answer]:
    return [Answer(text, judgement.is_correct) for text, judgement in zip(batch.texts, batch.judgements, strict=True)]
