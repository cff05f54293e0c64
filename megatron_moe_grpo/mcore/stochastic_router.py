"""The stochastic router: Megatron-Core's TopKRouter with expert selection as a policy.  MoE-GRPO 3.2.

Enters through `MoESubmodules.router`.  Depends on 0.16.1's `TopKRouter.forward/gating` and on `MoELayer` reading
(probs, routing_map); `routing()` is replaced because 0.16.1 has no argument for experts chosen by the caller.
Without a context it is the plain TopKRouter.
"""

from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import is_checkpointing
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_moe_grpo.errors import TraceError
from megatron_moe_grpo.losses.gate_grpo import gate_grpo_layer_loss
from megatron_moe_grpo.losses.load_balancing import load_balancing_loss
from megatron_moe_grpo.losses.router_z import router_z_loss
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.mcore.moe_layers import moe_layers
from megatron_moe_grpo.mcore.routing_context import LayerRecord, RoutingContext
from megatron_moe_grpo.routing.expert_choice import expert_choice, expert_choice_weights
from megatron_moe_grpo.routing.likelihood import selection_logprob
from megatron_moe_grpo.routing.selection import combination_weights, top_k
from megatron_moe_grpo.routing.sinkhorn import sinkhorn_top_k
from megatron_moe_grpo.routing.trace import RouteMode


class StochasticRouter(TopKRouter):
    """Selects experts by sampling, by replaying a trace, or by top-K; adds Gate-GRPO and load balancing to the graph.

    Megatron's names hold: logits before, scores after the softmax, probs the combination weights, routing_map the
    selection.  Token order inside a router is [s_local, b], position-major; with sequence parallelism s_local = s / tp.
    """

    def __init__(self, config: TransformerConfig, pg_collection: ProcessGroupCollection | None = None):
        super().__init__(config=config, pg_collection=pg_collection)
        # Checkpointed forwards wait here for their recomputation; 1F1B recomputes micro-batches in forward order.
        self._awaiting_recompute: deque[RoutingContext | None] = deque()
        self.context: RoutingContext | None = None
        self.layer: int | None = None
        """Index of this MoE layer among those of all pipeline stages, from 0; dense layers are not counted."""

    def set_layer_number(self, layer_number: int) -> None:
        """Megatron tells each layer its number in the whole model, from 1, once it is built."""
        super().set_layer_number(layer_number)
        self.layer = moe_layers(self.config).index(layer_number - 1)

    def forward(self, input: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """probs [M, N] and routing_map [M, N] for hidden states [s_local, b, D]."""
        context, is_recomputation = self._claim_context()
        if context is None:
            return super().forward(input, padding_mask)
        if self.config.sequence_parallel:
            start = self.tp_group.rank() * input.shape[0]
            context.position_slice = slice(start, start + input.shape[0])
        logits_MN = self.gating(input).reshape(-1, self.num_experts)
        policy_logits_MN = self._policy_logits(logits_MN, context)
        experts_MK, probs_MN, routing_map_MN = self._route(logits_MN, policy_logits_MN, context)
        if context.ledger is not None:
            context.ledger.record(context.micro_batch, self.layer, is_recompute=is_recomputation)
        if not is_recomputation:
            context.record_by_layer[self.layer] = LayerRecord(logits_MN.detach(), policy_logits_MN.detach(), experts_MK)
        if self.training and torch.is_grad_enabled():
            probs_MN = self._attach_losses(probs_MN, logits_MN, policy_logits_MN, experts_MK, routing_map_MN, context)
        return probs_MN, routing_map_MN

    def _claim_context(self) -> tuple[RoutingContext | None, bool]:
        """The context of this pass, and whether the pass is the recomputation of an earlier one."""
        if not is_checkpointing() or not self.training:
            return self.context, False
        if not torch.is_grad_enabled():
            self._awaiting_recompute.append(self.context)
            return self.context, False
        if not self._awaiting_recompute:
            raise TraceError(
                f"MoE layer {self.layer} recomputes a micro-batch it has not seen",
                expected="one recomputation for each checkpointed forward pass",
            )
        return self._awaiting_recompute.popleft(), True

    def _policy_logits(self, logits_MN: Tensor, context: RoutingContext) -> Tensor:
        """The logits that the selection policy sees: masked by guidance, divided by the temperature."""
        is_closed_MN = context.is_closed_MN(self.layer)
        if is_closed_MN is not None:
            logits_MN = logits_MN.masked_fill(is_closed_MN, float("-inf"))
        return logits_MN / context.policy.temperature if context.policy.temperature != 1.0 else logits_MN

    def _route(
        self, logits_MN: Tensor, policy_logits_MN: Tensor, context: RoutingContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen experts [M, K], combination weights [M, N] and their map [M, N]."""
        renormalise = not self.config.moe_router_pre_softmax
        if context.assignment == "expert_choice":
            is_real_M = context.to_local(context.is_real_BS)
            routing_map_MN = expert_choice(policy_logits_MN, is_real_M, self.topk)
            num_without = (is_real_M & ~routing_map_MN.any(dim=1)).sum()
            context.num_without_expert_by_layer[self.layer] = num_without
            probs_MN = expert_choice_weights(logits_MN, routing_map_MN, renormalise=renormalise)
            return logits_MN.new_zeros(len(logits_MN), 0, dtype=torch.int64), probs_MN, routing_map_MN
        experts_MK = self._select(logits_MN, policy_logits_MN, context)
        weights_MK = combination_weights(logits_MN, experts_MK, renormalise=renormalise)
        probs_MN = torch.zeros_like(logits_MN).scatter(1, experts_MK, weights_MK)
        routing_map_MN = torch.zeros_like(logits_MN, dtype=torch.bool).scatter(1, experts_MK, True)
        return experts_MK, probs_MN, routing_map_MN

    def _select(self, logits_MN: Tensor, policy_logits_MN: Tensor, context: RoutingContext) -> Tensor:
        if context.assignment == "sinkhorn":
            is_real_M = context.to_local(context.is_real_BS)
            return sinkhorn_top_k(policy_logits_MN, is_real_M, context.policy.sinkhorn_iterations, self.topk)
        if context.mode is RouteMode.REPLAY:
            return context.replayed_MK(self.layer)
        if context.mode is RouteMode.TOP_K:
            return top_k(policy_logits_MN.detach(), self.topk)
        noise_MN = None
        if context.policy.guidance != "none":
            noise_MN = context.noise_MN(self.layer)
        experts_MK = context.select(policy_logits_MN.detach(), noise_MN, self.topk)
        if context.explores_BS is None:
            return experts_MK
        explores_M1 = context.to_local(context.explores_BS).unsqueeze(1)
        return torch.where(explores_M1, experts_MK, top_k(logits_MN.detach(), self.topk))

    def _attach_losses(
        self,
        probs_MN: Tensor,
        logits_MN: Tensor,
        policy_logits_MN: Tensor,
        experts_MK: Tensor,
        routing_map_MN: Tensor,
        context: RoutingContext,
    ) -> Tensor:
        """Hangs this layer's loss terms on `probs`: the only way in that survives recomputation and pipeline stages."""
        if context.gate is not None:
            probs_MN = MoEAuxLossAutoScaler.apply(probs_MN, self._gate_loss(policy_logits_MN, experts_MK, context))
        if context.balance is not None:
            counted_logits_MN = policy_logits_MN if context.balance.counts_sampled else logits_MN
            balance_loss = self._balance_loss(counted_logits_MN, routing_map_MN, context)
            probs_MN = MoEAuxLossAutoScaler.apply(probs_MN, balance_loss)
        if context.router_z is not None:
            probs_MN = MoEAuxLossAutoScaler.apply(probs_MN, self._router_z_loss(logits_MN, context))
        return probs_MN

    def _gate_loss(self, policy_logits_MN: Tensor, experts_MK: Tensor, context: RoutingContext) -> Tensor:
        """This layer's share of Gate-GRPO.  Each token is its own sequence here: the weights know the rest."""
        gate = context.gate
        logprob_M = selection_logprob(policy_logits_MN, experts_MK, context.policy.likelihood)
        old_logprob_M = logprob_M.detach()
        if gate.old_logprob_BSL is not None:
            old_logprob_M = context.to_local(gate.old_logprob_BSL[:, :, self.layer])
        weight_M = context.to_local(gate.weight_BS)
        advantage_M = context.to_local(gate.advantage_B[:, None].expand_as(gate.weight_BS))
        term = gate_grpo_layer_loss(
            logprob_M[:, None], old_logprob_M[:, None], advantage_M, weight_M[:, None], gate.surrogate
        )
        context.gate_by_layer[self.layer] = LossTerm(term.loss.detach(), term.metrics)
        return term.loss * gate.scale

    def _balance_loss(self, counted_logits_MN: Tensor, routing_map_MN: Tensor, context: RoutingContext) -> Tensor:
        """This layer's Switch load-balancing loss; the logits are those of the law whose selections are counted."""
        balance = context.balance
        weight_M = context.to_local(balance.weight_BS)
        if balance.fraction_LN is None:
            counted_map_MN = routing_map_MN
            if not balance.counts_sampled:
                counted_experts_MK = top_k(counted_logits_MN, self.topk)
                counted_map_MN = torch.zeros_like(routing_map_MN).scatter(1, counted_experts_MK, True)
            fraction_N = self._own_fractions(counted_map_MN, weight_M > 0)
        else:
            fraction_N = balance.fraction_LN[self.layer]
        loss = load_balancing_loss(torch.softmax(counted_logits_MN, dim=-1), fraction_N, weight_M)
        context.balance_loss_by_layer[self.layer] = loss.detach()
        return loss * balance.scale

    def _router_z_loss(self, logits_MN: Tensor, context: RoutingContext) -> Tensor:
        """This layer's z-loss."""
        loss = router_z_loss(logits_MN, context.to_local(context.router_z.weight_BS))
        context.router_z_loss_by_layer[self.layer] = loss.detach()
        return loss * context.router_z.scale

    def _own_fractions(self, routing_map_MN: Tensor, is_counted_M: Tensor) -> Tensor:
        """Shares of this micro-batch's selections, of whole sequences also where positions are split over ranks."""
        count_N = (routing_map_MN & is_counted_M[:, None]).sum(0, dtype=torch.float64)
        if self.config.sequence_parallel:
            dist.all_reduce(count_N, group=self.tp_group)
        return (count_N / count_N.sum()).float()


def stochastic_routers(model: torch.nn.Module) -> list[StochasticRouter]:
    """The routers of this pipeline stage, first layer first."""
    return [module for module in model.modules() if isinstance(module, StochasticRouter)]


def route_with(model: torch.nn.Module) -> Callable[[RoutingContext | None], None]:
    """A setter that hands one context to every router of `model`; routers are looked up once."""
    routers = stochastic_routers(model)

    def hand_over(context: RoutingContext | None) -> None:
        for router in routers:
            router.context = context

    return hand_over
