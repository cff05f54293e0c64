"""The same step without a trace: experts by deterministic top-K, nothing sampled, recorded or replayed.

What it is compared with is the whole method, so everything else stays: the same losses at the same positions under the
same guidance mask.  `without_router_losses` takes those away too and leaves Megatron's own router.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megatron_moe_grpo.benchmark.measure import replaced
from megatron_moe_grpo.losses.gate_grpo import gate_position_weights
from megatron_moe_grpo.mcore.moe_layers import RouterSizes, router_sizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import BalanceTerm, GateTerm, RoutingContext
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout import decode
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.training import update
from megatron_moe_grpo.training.update_batch import StepConstants, UpdateBatch, UpdateSettings, update_batches


@contextmanager
def without_trace(settings: UpdateSettings, guidance: Callable[[], Tensor]) -> Iterator[None]:
    """Steps inside the block route by top-K and keep nothing; losses as in `settings`, mask as `guidance` says."""

    def batches_without_trace(*args: Any) -> tuple[list[UpdateBatch], StepConstants, Any]:
        batches, constants, _ = update_batches(*args)
        routed = [
            replace(batch, context=_top_k_update(batch, constants, settings, args[-1], guidance())) for batch in batches
        ]
        return routed, constants, _NoLedger()

    def token_metrics_only(token_metrics: Any, batches: list[UpdateBatch], *rest: Any) -> dict[str, float]:
        return update_metrics(token_metrics, [replace(batch, context=None) for batch in batches], *rest)

    update_metrics = update.update_metrics
    with (
        replaced(decode, "_Recorder", _TopKDecoding),
        replaced(decode, "_SelectionNoise", _NoNoise),
        replaced(update, "update_batches", batches_without_trace),
        replaced(update, "update_metrics", token_metrics_only),
    ):
        yield


@contextmanager
def without_router_losses() -> Iterator[None]:
    """Steps inside the block run Megatron's own router: no guidance, no Gate-GRPO, no load balancing."""

    def batches_without_trace(*args: Any) -> tuple[list[UpdateBatch], StepConstants, Any]:
        batches, constants, _ = update_batches(*args)
        return batches, constants, _NoLedger()

    with (
        replaced(decode, "_Recorder", _PlainDecoding),
        replaced(decode, "_SelectionNoise", _NoNoise),
        replaced(update, "update_batches", batches_without_trace),
    ):
        yield


class _PlainDecoding:
    """Stands in for decode's recorder; without a context, routers are Megatron's."""

    def __init__(self, model: VisionLanguageModel, layout: ParallelLayout):
        self._sizes = router_sizes(model.config)

    def start(self, new: TokenBatch, noise_LBSN: Any, settings: DecodeSettings) -> RoutingContext | None:
        """The context of the next forward."""
        return None

    def finish(self, context: RoutingContext | None) -> None:
        """Keeps nothing."""

    def trace(self, num_padding: int, is_allowed_L2N: Any) -> None:
        """There is none."""

    def counts(self) -> None:
        """There are none."""


class _TopKDecoding(_PlainDecoding):
    """Deterministic top-K under the guidance mask."""

    def start(self, new: TokenBatch, noise_LBSN: Any, settings: DecodeSettings) -> RoutingContext:
        """The context of the next forward."""
        return RoutingContext(
            mode=RouteMode.TOP_K,
            is_real_BS=new.is_real_BS,
            is_vision_BS=new.is_vision_BS,
            sizes=self._sizes,
            policy=settings.policy,
            is_allowed_L2N=settings.is_allowed_L2N,
        )


class _NoNoise:
    """Stands in for decode's selection noise."""

    def __init__(self, *args: Any):
        pass

    def of_step(self, step: int, batch: TokenBatch) -> None:
        """None is drawn."""


class _NoLedger:
    """Nothing was replayed, so nothing is owed."""

    def assert_consumed(self) -> None:
        """Always content."""


def _top_k_update(
    batch: UpdateBatch, constants: StepConstants, settings: UpdateSettings, sizes: RouterSizes, is_allowed_L2N: Tensor
) -> RoutingContext:
    """The update's context with the same two losses; nobody counted selections, so load balancing assumes even ones."""
    losses = settings.losses
    weight_BS = gate_position_weights(batch.is_target_BS, sizes.num_layers) / constants.totals.num_sequences
    return RoutingContext(
        mode=RouteMode.TOP_K,
        is_real_BS=batch.tokens.is_real_BS,
        is_vision_BS=batch.tokens.is_vision_BS,
        sizes=sizes,
        policy=settings.policy,
        is_allowed_L2N=is_allowed_L2N,
        gate=GateTerm(None, batch.advantage_B, weight_BS, settings.objective.gate, losses.gate_coefficient),
        balance=BalanceTerm(
            torch.full((sizes.num_layers, sizes.num_experts), 1 / sizes.num_experts),
            batch.tokens.is_real_BS.float() / constants.num_tokens,
            losses.load_balancing_coefficient,
        ),
    )
