"""The supervised step: negative log-likelihood of the right answer, experts sampled or not.  MoE-GRPO Table 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.losses.token_grpo import token_weights
from megatron_moe_grpo.mcore.forward_backward import Metrics, forward_backward
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import BalanceTerm, RoutingContext
from megatron_moe_grpo.mcore.routing_records import recorded_entropy_L, recorded_top_k_L2N
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.rollout.collect import StepRows, selection_policy
from megatron_moe_grpo.rollout.prompts import PreparedPrompts, padded_positions, prepare_prompts
from megatron_moe_grpo.rollout.records import RoutingCounts
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.training.guidance import count_routing, current_mask
from megatron_moe_grpo.training.run import Run


@dataclass(frozen=True, eq=False)
class AnswerBatch:
    """A micro-batch of prompts with their right answers; [B, S] without the last answer token."""

    tokens: TokenBatch
    labels_BS: Tensor
    is_target_BS: Tensor
    context: RoutingContext | None


def supervised_step(run: Run, step_rows: StepRows) -> dict[str, float]:
    """One optimizer step on the rows' right answers; returns metrics of all ranks."""
    batches = _answer_batches(run, step_rows)
    hand_over = route_with(run.model)
    num_sequences = len(step_rows.rows)
    scale = len(batches) * run.layout.data_size

    def forward(model: torch.nn.Module, batch: AnswerBatch) -> Tensor:
        hand_over(batch.context)
        return model(batch.tokens, labels_BS=batch.labels_BS)

    def loss(batch: AnswerBatch, nll_BS: Tensor) -> tuple[Tensor, Metrics]:
        total = (token_weights(batch.is_target_BS, num_sequences) * nll_BS.float()).sum()
        return total * scale, {"loss": total.detach()}

    run.trainable.zero_gradients()
    size, num_positions = batches[0].tokens.token_ids_BS.shape
    losses = forward_backward(run.trainable.wrapped, batches, forward, loss, num_positions, size)
    hand_over(None)
    gradient_norm, learning_rate = run.trainable.step()
    total = torch.stack([part["loss"] for part in losses]).double().sum() if losses else torch.zeros(()).double()
    total = run.layout.sum_over_pipeline(run.layout.sum_over_data(total.to(run.layout.device)))
    metrics = {"loss": total.item(), "grad_norm": gradient_norm, "learning_rate": learning_rate}
    return metrics | _routing_report(run, [batch.context for batch in batches if batch.context is not None])


def _answer_batches(run: Run, step_rows: StepRows) -> list[AnswerBatch]:
    rows, first = step_rows.share(run.layout)
    num_answer = max(len(row.answer_ids) for row in step_rows.rows)
    num_positions = padded_positions(step_rows.rows, num_answer - 1, run.layout.tensor_size)
    prompts = prepare_prompts(rows, num_positions, run.processing)
    size = min(run.config.training.micro_batch_prompts, len(rows))
    stream_B = step_rows.first_stream + first + torch.arange(len(rows), device=run.layout.device)
    return [
        _answer_batch(run, prompts, start, start + size, num_answer, stream_B[start : start + size])
        for start in range(0, len(rows), size)
    ]


def _answer_batch(
    run: Run, prompts: PreparedPrompts, start: int, stop: int, num_answer: int, stream_B: Tensor
) -> AnswerBatch:
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
        context=_routing_context(run, tokens, stream_B),
    )


def _routing_context(run: Run, tokens: TokenBatch, stream_B: Tensor) -> RoutingContext | None:
    """Experts by `routing.guidance`: `none` is Det-FT, `multinomial` Stoch-FT-Multi, `noise` Stoch-FT-Noise."""
    config = run.config
    sizes = router_sizes(run.model.config)
    if sizes is None:
        return None
    is_real_BS = tokens.is_real_BS
    # The counts of a micro-batch are its own, so its tokens' weights add up to 1 before Megatron averages.
    balance = BalanceTerm(None, is_real_BS.float() / is_real_BS.sum(), config.losses.load_balancing_coefficient)
    return RoutingContext(
        mode=RouteMode.SAMPLE,
        is_real_BS=is_real_BS,
        is_vision_BS=tokens.is_vision_BS,
        sizes=sizes,
        policy=selection_policy(config),
        is_allowed_L2N=current_mask(run),
        stream_B=stream_B,
        position_BS=tokens.position_BS,
        balance=balance if config.losses.load_balancing_coefficient > 0 else None,
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
