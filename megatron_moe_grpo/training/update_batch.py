"""A step's rollouts, cut into micro-batches that carry everything their losses need.

Weights are those of the *global* batch, so neither micro-batches nor ranks change a loss; `scale` undoes Megatron's own
averaging over both (mcore/forward_backward.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig, RunConfig
from megatron_moe_grpo.losses.gate_grpo import gate_position_weights, gate_positions
from megatron_moe_grpo.losses.objective import objective_of
from megatron_moe_grpo.losses.policy_objective import PolicyObjective
from megatron_moe_grpo.losses.token_weights import BatchTotals
from megatron_moe_grpo.mcore.moe_layers import RouterSizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import (
    BalanceTerm,
    GateTerm,
    RouterZTerm,
    RoutingContext,
    SelectionPolicy,
)
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.rollout.collect import selection_policy
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.routing.selection import count_selections
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace, TraceLedger


@dataclass(frozen=True)
class UpdateSettings:
    """What every update needs besides its rollouts."""

    losses: LossConfig
    policy: SelectionPolicy
    explores_prompt: bool
    micro_batch_prompts: int
    has_recompute: bool
    trusts_rollout_logprobs: bool
    """fp32: recorded log-probs are the old ones.  Lower precision: they differ from the training forward's by more
    than rounding, so the first update takes its own as old and every ratio is exactly 1."""

    @classmethod
    def of(cls, config: RunConfig) -> "UpdateSettings":
        """Those of a run."""
        return cls(
            losses=config.losses,
            policy=selection_policy(config),
            explores_prompt=config.routing.explore == "all",
            micro_batch_prompts=config.training.micro_batch_prompts,
            has_recompute=config.parallel.recompute != "none",
            trusts_rollout_logprobs=config.precision == "fp32",
        )

    @property
    def objective(self) -> PolicyObjective:
        """What `losses.rl_method` makes of tokens and selections."""
        return objective_of(self.losses)


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """A micro-batch of whole groups; S covers the prompt and all but the last response token."""

    tokens: TokenBatch
    labels_BS: Tensor
    is_target_BS: Tensor
    """True where the position produced a response token."""
    old_token_logprob_BS: Tensor
    reference_logprob_BS: Tensor | None
    """The reference policy's, for the KL term; None without one."""
    advantage_B: Tensor
    trace: RoutingTrace | None
    context: RoutingContext | None


@dataclass(frozen=True, eq=False)
class StepConstants:
    """Numbers of the whole step, equal on every rank."""

    totals: BatchTotals
    num_tokens: float
    """Tokens that are fed to the model in the update, padding not counted."""
    fraction_LN: Tensor | None
    """Shares of the step's selections, for load balancing."""
    scale: float

    @classmethod
    def of(
        cls, rollouts: RolloutBatch, layout: ParallelLayout, losses: LossConfig, num_micro_batches: int
    ) -> "StepConstants":
        """Sums over data-parallel ranks; all of them call it together."""
        responses = rollouts.responses
        fed_BS = _fed_tokens(rollouts, 0, len(rollouts.prompts.rows)).is_real_BS
        num_tokens = torch.stack((fed_BS.sum(), responses.is_response_BT.sum())).double()
        num_fed, num_responding = layout.sum_over_data(num_tokens).tolist()
        fraction_LN = None
        if responses.trace is not None:
            if losses.load_balancing_counts == "top_k":
                count_LN = responses.counts.top_k_L2N.sum(dim=1)
            else:
                count_LN = _count_trace(responses.trace, fed_BS, responses.counts.top_k_L2N.shape[2])
            count_LN = layout.sum_over_data(count_LN)
            fraction_LN = (count_LN / count_LN.sum(dim=1, keepdim=True)).float()
        return cls(
            # Decoding pads every response to rollout.max_new_tokens.
            totals=BatchTotals(
                len(rollouts.stream_B) * layout.data_size, num_responding, responses.token_ids_BT.shape[1]
            ),
            num_tokens=num_fed,
            fraction_LN=fraction_LN,
            scale=num_micro_batches * layout.data_size,
        )


def update_batches(
    rollouts: RolloutBatch,
    advantage_B: Tensor,
    layout: ParallelLayout,
    settings: UpdateSettings,
    layers: list[int],
    sizes: RouterSizes | None,
) -> tuple[list[UpdateBatch], StepConstants, TraceLedger]:
    """All micro-batches of this rank, and the ledger in which their replays are counted.

    Args:
        layers: MoE layers on this pipeline stage, counted over the whole model.
        sizes: L, N and K of the whole model; None for a dense one.
    """
    num_prompts = len(rollouts.prompts.rows)
    size = min(settings.micro_batch_prompts, num_prompts)
    starts = range(0, num_prompts, size)
    constants = StepConstants.of(rollouts, layout, settings.losses, len(starts))
    ledger = TraceLedger(len(starts), layers, has_recompute=settings.has_recompute)
    batches = []
    for index, start in enumerate(starts):
        batch = _cut(rollouts, advantage_B, start, min(start + size, num_prompts))
        if batch.trace is not None:
            context = _routing_context(batch, rollouts, constants, settings, sizes)
            context.ledger, context.micro_batch = ledger, index
            batch = replace(batch, context=context)
        batches.append(batch)
    return batches, constants, ledger


def _cut(rollouts: RolloutBatch, advantage_B: Tensor, start: int, stop: int) -> UpdateBatch:
    """Prompts start..stop-1 with their groups."""
    rows = slice(start * rollouts.group_size, stop * rollouts.group_size)
    responses, reference_BT = rollouts.responses, rollouts.reference_logprob_BT
    tokens = _fed_tokens(rollouts, start, stop)
    token_ids_BT, is_response_BT = responses.token_ids_BT[rows], responses.is_response_BT[rows]
    num_before = tokens.token_ids_BS.shape[1] - token_ids_BT.shape[1]

    def at_producer(values_BT: Tensor) -> Tensor:
        return torch.nn.functional.pad(values_BT, (num_before, 0))

    return UpdateBatch(
        tokens=tokens,
        labels_BS=torch.cat((tokens.token_ids_BS[:, 1:], token_ids_BT[:, -1:]), dim=1),
        is_target_BS=at_producer(is_response_BT),
        old_token_logprob_BS=at_producer(responses.token_logprob_BT[rows]),
        reference_logprob_BS=None if reference_BT is None else at_producer(reference_BT[rows]),
        advantage_B=advantage_B[rows],
        trace=None if responses.trace is None else responses.trace.rows(rows.start, rows.stop),
        context=None,
    )


def _fed_tokens(rollouts: RolloutBatch, start: int, stop: int) -> TokenBatch:
    """Prompt and response without its last token, which nothing was decoded from."""
    rows = slice(start * rollouts.group_size, stop * rollouts.group_size)
    token_ids_BT = rollouts.responses.token_ids_BT[rows, :-1]
    was_fed_BT = rollouts.responses.is_response_BT[rows, 1:]
    return rollouts.prompts.batch(start, stop).repeated(rollouts.group_size).extended(token_ids_BT, was_fed_BT)


def _routing_context(
    batch: UpdateBatch, rollouts: RolloutBatch, constants: StepConstants, settings: UpdateSettings, sizes: RouterSizes
) -> RoutingContext:
    losses, is_real_BS = settings.losses, batch.tokens.is_real_BS
    gate = balance = router_z = None
    if losses.gate_coefficient > 0:
        weight_BS = gate_position_weights(_gate_positions(batch, settings), sizes.num_layers)
        gate = GateTerm(
            old_logprob_BSL=batch.trace.logprob_BSL if settings.trusts_rollout_logprobs else None,
            advantage_B=batch.advantage_B,
            weight_BS=weight_BS / constants.totals.num_sequences,
            surrogate=settings.objective.gate,
            scale=losses.gate_coefficient * constants.scale,
        )
    if losses.load_balancing_coefficient > 0:
        balance = BalanceTerm(
            fraction_LN=constants.fraction_LN,
            weight_BS=is_real_BS.float() / constants.num_tokens,
            scale=losses.load_balancing_coefficient * constants.scale,
            counts_sampled=losses.load_balancing_counts == "sampled",
        )
    if losses.router_z_coefficient > 0:
        weight_BS = is_real_BS.float() / constants.num_tokens
        router_z = RouterZTerm(weight_BS, losses.router_z_coefficient * constants.scale)
    return RoutingContext(
        mode=RouteMode.REPLAY,
        is_real_BS=is_real_BS,
        is_vision_BS=batch.tokens.is_vision_BS,
        sizes=sizes,
        policy=settings.policy,
        is_allowed_L2N=batch.trace.is_allowed_L2N,
        explores_BS=None if settings.explores_prompt else _explored_positions(batch, rollouts),
        trace=batch.trace,
        gate=gate,
        balance=balance,
        router_z=router_z,
    )


def _gate_positions(batch: UpdateBatch, settings: UpdateSettings) -> Tensor:
    """Where Gate-GRPO applies, among positions whose experts were sampled at all."""
    if settings.losses.gate_tokens == "response" or not settings.explores_prompt:
        return batch.is_target_BS
    # A response token stands one place right of its producer: shift, ask, and drop the place added.
    is_response_BS = torch.nn.functional.pad(batch.is_target_BS, (1, 0))
    is_token_BS = torch.nn.functional.pad(batch.tokens.is_real_BS, (0, 1), value=True)
    return gate_positions(is_response_BS, is_token_BS, "all")[:, :-1]


def _explored_positions(batch: UpdateBatch, rollouts: RolloutBatch) -> Tensor:
    """`explore: response`: from the last prompt token on."""
    explores_BS = torch.ones_like(batch.tokens.is_real_BS)
    explores_BS[:, : rollouts.prompts.num_positions - 1] = False
    return explores_BS


def _count_trace(trace: RoutingTrace, is_counted_BS: Tensor, num_experts: int) -> Tensor:
    """Selections of each expert in each layer, [L, N] float64."""
    num_layers = trace.experts_BSLK.shape[2]
    # Layer l's expert e is number l * N + e of one long list: one count instead of L.
    offset_L1 = num_experts * torch.arange(num_layers, device=trace.experts_BSLK.device)[:, None]
    experts_MK = (trace.experts_BSLK + offset_L1).flatten(0, 1).flatten(1)
    return count_selections(experts_MK, num_layers * num_experts, is_counted_BS.flatten()).view(num_layers, -1)
