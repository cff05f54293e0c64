"""The supervised step: negative log-likelihood of the right answer, experts sampled or not.  MoE-GRPO Table 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights
from megatron_moe_grpo.mcore.forward_backward import Metrics, forward_backward
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import BalanceTerm, RouterZTerm, RoutingContext
from megatron_moe_grpo.mcore.routing_records import recorded_entropy_L, recorded_top_k_L2N
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.rollout.collect import StepRows, selection_policy
from megatron_moe_grpo.rollout.prompts import EncodedRow, PreparedPrompts, padded_positions, prepare_prompts
from megatron_moe_grpo.rollout.records import RoutingCounts
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.training.guidance import count_routing, current_mask
from megatron_moe_grpo.training.run import Run
from megatron_moe_grpo.training.update_guard import guarded_step


@dataclass(frozen=True, eq=False)
class AnswerBatch:
    """A micro-batch of prompts with their right answers; [B, S] without the last answer token."""

    tokens: TokenBatch
    labels_BS: Tensor
    is_target_BS: Tensor
    context: RoutingContext | None


@dataclass(frozen=True)
class StepTotals:
    """Numbers of the whole step, which every rank reads from the same list of rows."""

    answers: BatchTotals
    num_tokens: int
    """Tokens that are fed to the model, padding not counted."""
    micro_batch_size: int
    scale: float
    """What Megatron's averaging divides by: micro-batches of all data-parallel ranks."""

    @classmethod
    def of(cls, run: Run, rows: Sequence[EncodedRow]) -> "StepTotals":
        """The step's rows, over all ranks."""
        num_answer = [len(row.answer_ids) for row in rows]
        size = min(run.config.training.micro_batch_prompts, len(rows) // run.layout.data_size)
        return cls(
            answers=BatchTotals(len(rows), sum(num_answer), max(num_answer)),
            # The last answer token is predicted and never fed.
            num_tokens=sum(len(row.prompt_ids) for row in rows) + sum(num_answer) - len(rows),
            micro_batch_size=size,
            scale=len(rows) / size,
        )


def supervised_step(run: Run, step_rows: StepRows) -> dict[str, float]:
    """One optimizer step on the rows' right answers; returns metrics of all ranks."""
    totals = StepTotals.of(run, step_rows.rows)
    batches = _answer_batches(run, step_rows, totals)
    hand_over = route_with(run.model)

    def forward(model: torch.nn.Module, batch: AnswerBatch) -> Tensor:
        hand_over(batch.context)
        return model(batch.tokens, labels_BS=batch.labels_BS)

    def loss(batch: AnswerBatch, nll_BS: Tensor) -> tuple[Tensor, Metrics]:
        total = (token_weights(batch.is_target_BS, totals=totals.answers) * nll_BS.float()).sum()
        return total * totals.scale, {"loss": total.detach()}

    run.trainable.zero_gradients()
    size, num_positions = batches[0].tokens.token_ids_BS.shape
    losses = forward_backward(run.trainable.wrapped, batches, forward, loss, num_positions, size)
    hand_over(None)
    total = torch.stack([part["loss"] for part in losses]).double().sum() if losses else torch.zeros(()).double()
    total = run.layout.sum_over_pipeline(run.layout.sum_over_data(total.to(run.layout.device)))
    metrics = {"loss": total.item()}
    metrics |= guarded_step(run.trainable, run.guard, metrics["loss"])
    contexts = [batch.context for batch in batches if batch.context is not None]
    return metrics | _routing_report(run, contexts) | _router_terms(run, contexts, totals)


def _answer_batches(run: Run, step_rows: StepRows, totals: StepTotals) -> list[AnswerBatch]:
    rows, first = step_rows.share(run.layout)
    num_positions = padded_positions(step_rows.rows, totals.answers.max_response_tokens - 1, run.layout.tensor_size)
    prompts = prepare_prompts(rows, num_positions, run.processing)
    stream_B = step_rows.first_stream + first + torch.arange(len(rows), device=run.layout.device)
    return [
        _answer_batch(run, prompts, start, totals, stream_B[start : start + totals.micro_batch_size])
        for start in range(0, len(rows), totals.micro_batch_size)
    ]


def _answer_batch(run: Run, prompts: PreparedPrompts, start: int, totals: StepTotals, stream_B: Tensor) -> AnswerBatch:
    stop, num_answer = start + totals.micro_batch_size, totals.answers.max_response_tokens
    batch = prompts.batch(start, stop)
    answer_BT = torch.full((stop - start, num_answer), run.processing.pad_token_id)
    is_answer_BT = torch.zeros(stop - start, num_answer, dtype=torch.bool)
    for index, row in enumerate(prompts.rows[start:stop]):
        answer_BT[index, : len(row.answer_ids)] = torch.tensor(row.answer_ids)
        is_answer_BT[index, : len(row.answer_ids)] = True
    answer_BT, is_answer_BT = answer_BT.to(run.layout.device), is_answer_BT.to(run.layout.device)
    tokens = batch.extended(answer_BT[:, :-1], is_answer_BT[:, 1:])
    num_before = tokens.token_ids_BS.shape[1] - num_answer
    return AnswerBatch(
        tokens=tokens,
        labels_BS=torch.cat((tokens.token_ids_BS[:, 1:], answer_BT[:, -1:]), dim=1),
        is_target_BS=torch.nn.functional.pad(is_answer_BT, (num_before, 0)),
        context=_routing_context(run, tokens, totals, stream_B),
    )


def _routing_context(run: Run, tokens: TokenBatch, totals: StepTotals, stream_B: Tensor) -> RoutingContext | None:
    """Experts by `routing.guidance`: `none` is Det-FT, `multinomial` Stoch-FT-Multi, `noise` Stoch-FT-Noise; or by
    `routing.assignment` (M Table 7), over the tokens of this micro-batch."""
    config, losses = run.config, run.config.losses
    sizes = router_sizes(run.model.config)
    if sizes is None:
        return None
    is_real_BS = tokens.is_real_BS
    # The counts of a micro-batch are its own, so its tokens' weights add up to 1 before Megatron averages.
    balance = BalanceTerm(
        None,
        is_real_BS.float() / is_real_BS.sum(),
        losses.load_balancing_coefficient,
        counts_sampled=losses.load_balancing_counts == "sampled",
    )
    router_z = RouterZTerm(is_real_BS.float() / totals.num_tokens, losses.router_z_coefficient * totals.scale)
    return RoutingContext(
        mode=RouteMode.SAMPLE,
        is_real_BS=is_real_BS,
        is_vision_BS=tokens.is_vision_BS,
        sizes=sizes,
        policy=selection_policy(config),
        is_allowed_L2N=current_mask(run),
        stream_B=stream_B,
        position_BS=tokens.position_BS,
        balance=balance if losses.load_balancing_coefficient > 0 else None,
        router_z=router_z if losses.router_z_coefficient > 0 else None,
    )


def _routing_report(run: Run, contexts: list[RoutingContext]) -> dict[str, float]:
    if not contexts:
        return {}
    sizes = contexts[0].sizes
    top_k_L2N = torch.zeros(sizes.num_layers, 2, sizes.num_experts, dtype=torch.float64, device=run.layout.device)
    entropy_L = torch.zeros(sizes.num_layers, dtype=torch.float64, device=run.layout.device)
    for context in contexts:
        top_k_L2N += recorded_top_k_L2N(context)
        entropy_L += recorded_entropy_L(context)
    layout = run.layout
    # Sequence parallelism splits positions, the pipeline splits layers; data-parallel ranks are summed by the counter.
    top_k_L2N = layout.sum_over_pipeline(layout.sum_over_tensor(top_k_L2N))
    entropy_L = layout.sum_over_pipeline(layout.sum_over_tensor(entropy_L))
    num_tokens = sum(context.is_real_BS.sum().double() for context in contexts)
    return count_routing(run, RoutingCounts(top_k_L2N, entropy_L, num_tokens))


def _router_terms(run: Run, contexts: list[RoutingContext], totals: StepTotals) -> dict[str, float]:
    """Balancing and z-loss, means over layers, and the share of (token, layer) pairs without expert; where they are."""
    losses, layout = run.config.losses, run.layout

    def mean_over_layers(parts: list[Tensor]) -> float:
        total = sum(parts, torch.zeros((), dtype=torch.float64, device=layout.device))
        total = layout.sum_over_pipeline(layout.sum_over_tensor(layout.sum_over_data(total)))
        return total.item() / contexts[0].sizes.num_layers

    values = {}
    if contexts and losses.load_balancing_coefficient > 0:
        parts = [loss for context in contexts for loss in context.balance_loss_by_layer.values()]
        values["load_balancing_loss"] = mean_over_layers(parts) / totals.scale
    if contexts and losses.router_z_coefficient > 0:
        parts = [loss for context in contexts for loss in context.router_z_loss_by_layer.values()]
        values["router_z_loss"] = mean_over_layers(parts)
    if contexts and run.config.routing.assignment == "expert_choice":
        parts = [count for context in contexts for count in context.num_without_expert_by_layer.values()]
        values["tokens_without_expert"] = mean_over_layers(parts) / totals.num_tokens
    return values
