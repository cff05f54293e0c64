"""One whole step under any parallel layout, and everything of it that must not depend on the layout."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from tiny_policy import (
    GROUP_SIZE,
    NUM_EXPERTS,
    PROBLEMS,
    Bench,
    build_shard,
    exploring,
    rare_judge,
    trainable,
    update_settings,
)
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig, ParallelConfig, RlMethod
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.losses.kl_loss import KlTerm
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.dynamic_sampling import FreshPrompts, fill_groups
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients


@dataclass(frozen=True)
class Objective:
    """Choices that change the numbers of a step; outcomes of one objective must agree whatever the layout."""

    family: Literal["internvl", "qwen2_vl"] = "internvl"
    routed: Literal["all_layers", "some_layers", "last_stage"] = "all_layers"
    """Which layers have experts: all 4; 0, 2, 3 and 6 of 8; the last 4 of 8, which leaves one of two stages none."""
    ties_embeddings: bool = False
    gate_tokens: Literal["response", "all"] = "response"
    explores_prompt: bool = True
    rl_method: RlMethod = "grpo"
    has_kl: bool = False
    """The reference is made up: what each token had as log-prob, times 1.2."""
    extra_rounds: int = 0
    """Of dynamic sampling, with a judge that leaves many groups without signal."""

    @property
    def checkpoint_name(self) -> str:
        """Folder of the weights that the step starts from."""
        if self.routed != "all_layers":
            return self.routed
        if self.family == "qwen2_vl":
            return "qwen2_vl_tied" if self.ties_embeddings else "qwen2_vl"
        return "tied" if self.ties_embeddings else "untied"

    @property
    def losses(self) -> LossConfig:
        """All four terms."""
        return LossConfig(
            rl_method=self.rl_method,
            gate_tokens=self.gate_tokens,
            load_balancing_coefficient=0.1,
            router_z_coefficient=0.01,
        )


@dataclass(frozen=True)
class StepCase:
    """A layout, a split, and an objective."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    micro_batch_prompts: int = len(PROBLEMS)
    prompts_per_forward: int = len(PROBLEMS)
    objective: Objective = field(default_factory=Objective)


@dataclass(frozen=True)
class StepOutcome:
    """What one rank saw; metrics are those of all ranks."""

    rollouts: dict[str, Tensor]
    top_k_L2N: Tensor
    """Guidance counts over all ranks."""
    metrics: dict[str, float]
    """At the weights that made the rollouts: every ratio is 1."""
    grad_norm: float
    later_metrics: dict[str, float]
    """After one optimizer step on the same rollouts: ratios have moved, some are clipped."""
    replica_gap: float
    """Largest difference between tensor-parallel ranks in the gradient of a parameter that both hold whole."""


def run_step(bench: Bench, case: StepCase, checkpoint: Path) -> tuple[StepOutcome, TrainableModel, dict[str, Tensor]]:
    """Loads, rolls out, and updates twice; also the trained model and its whole first gradient by parameter name."""
    torch.manual_seed(bench.layout.rank)
    model = build_shard(checkpoint / "assets", case.parallel, bench.layout)
    trained = trainable(model)
    load_checkpoint(checkpoint, model)
    trained.optimizer.reload_model_params()
    rollouts, drawn = _roll_out(bench, model, case)
    rollouts.responses.trace.validate(NUM_EXPERTS)
    settings = update_settings(
        case.objective.losses,
        explores_prompt=case.objective.explores_prompt,
        micro_batch_prompts=case.micro_batch_prompts,
        has_recompute=case.parallel.recompute != "none",
    )
    divides_by_std = settings.objective.divides_by_std
    advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size, divides_by_std).advantage_B
    kl = None
    if case.objective.has_kl:
        kl = KlTerm(beta=0.5)
        rollouts = replace(rollouts, reference_logprob_BT=1.2 * rollouts.responses.token_logprob_BT)
    metrics = drawn | accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings, kl)
    gradient = _gather_over_data(trained)
    _, grad_norm = trained.measure(loss=0.0)
    trained.step(grad_norm)
    later_metrics = accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings, kl)
    outcome = StepOutcome(
        rollouts=_facts(rollouts, max(len(row.prompt_ids) for row in bench.rows)),
        top_k_L2N=bench.layout.sum_over_data(rollouts.responses.counts.top_k_L2N.clone()),
        metrics=metrics,
        grad_norm=grad_norm,
        later_metrics=later_metrics,
        replica_gap=_replica_gap(trained, gradient, bench.layout),
    )
    return outcome, trained, gradient


def _roll_out(bench: Bench, model: VisionLanguageModel, case: StepCase) -> tuple[RolloutBatch, dict[str, float]]:
    """The step's rollouts, and the metrics of dynamic sampling where there is any."""
    objective = case.objective
    roll_out = partial(
        bench.roll_out,
        model,
        exploring(bench.processing, objective.explores_prompt),
        prompts_per_forward=case.prompts_per_forward,
    )
    if objective.extra_rounds == 0:
        return roll_out(), {}
    fresh = FreshPrompts(bench.rows, len(PROBLEMS), GROUP_SIZE, objective.extra_rounds, num_steps=10, seed=3)
    return fill_groups(
        roll_out(judge=rare_judge),
        fresh,
        0,
        lambda step_rows: roll_out(judge=rare_judge, step_rows=step_rows),
        bench.layout,
    )


def join_data_ranks(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rollouts of all data-parallel ranks, first rank's prompts first."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _facts(rollouts: RolloutBatch, longest_prompt: int) -> dict[str, Tensor]:
    responses, trace = rollouts.responses, rollouts.responses.trace
    prompts = rollouts.prompts.batch(0, len(rollouts.prompts.rows)).repeated(rollouts.group_size)
    # Sequence parallelism may add padding on the left: compared is what stands right of it.
    num_compared = longest_prompt + responses.token_ids_BT.shape[1] - 1
    fed_BS = prompts.extended(responses.token_ids_BT[:, :-1], responses.is_response_BT[:, 1:]).is_real_BS
    is_real_BS = fed_BS[:, -num_compared:, None]
    return {
        "token_ids_BT": responses.token_ids_BT.where(responses.is_response_BT, -1),
        "is_response_BT": responses.is_response_BT,
        "token_logprob_BT": responses.token_logprob_BT * responses.is_response_BT,
        "reward_B": rollouts.reward_B,
        "experts_BSLK": trace.experts_BSLK[:, -num_compared:].where(is_real_BS.unsqueeze(-1), -1),
        "logprob_BSL": trace.logprob_BSL[:, -num_compared:] * is_real_BS,
    }


def _gather_over_data(trained: TrainableModel) -> dict[str, Tensor]:
    """This shard's gradient: the distributed optimizer leaves each data-parallel rank only its part of every buffer."""
    for buffer in [*trained.wrapped.buffers, *trained.wrapped.expert_parallel_buffers]:
        size, rank = buffer.data_parallel_world_size, dist.get_rank(buffer.data_parallel_group)
        for bucket in buffer.buckets:
            own_part = bucket.grad_data.chunk(size)[rank].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own_part, group=buffer.data_parallel_group)
    return {name: parameter.main_grad.clone() for name, parameter in trained.module.named_parameters()}


def _replica_gap(trained: TrainableModel, gradient: dict[str, Tensor], layout: ParallelLayout) -> float:
    gap = 0.0
    for name, parameter in trained.module.named_parameters():
        if vars(parameter).get("tensor_model_parallel", False) or ".experts." in name:
            continue
        total = layout.sum_over_tensor(gradient[name].clone()) / layout.tensor_size
        gap = max(gap, float((total - gradient[name]).abs().max()))
    return gap
