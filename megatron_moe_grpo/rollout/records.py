"""What a rollout leaves behind: values that travel together from decoding to the update."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.rollout.prompts import PreparedPrompts
from megatron_moe_grpo.routing.trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class RoutingCounts:
    """Sums over the tokens of one rank's forwards, for guidance, load balancing and the log."""

    top_k_L2N: Tensor
    """Deterministic top-K choices by modality (index 1: vision), float64."""
    entropy_sum_L: Tensor
    """Sum of the router distribution's entropy over tokens, nats, float64."""
    num_tokens: Tensor
    """Tokens counted, scalar float64."""

    def __add__(self, other: "RoutingCounts") -> "RoutingCounts":
        return RoutingCounts(
            self.top_k_L2N + other.top_k_L2N,
            self.entropy_sum_L + other.entropy_sum_L,
            self.num_tokens + other.num_tokens,
        )


@dataclass(frozen=True, eq=False)
class Responses:
    """B responses of at most T tokens and how they came about."""

    token_ids_BT: Tensor
    is_response_BT: Tensor
    """True up to the end-of-turn token, which counts."""
    token_logprob_BT: Tensor
    """Log-probability of each token when it was chosen, nats, float32."""
    trace: RoutingTrace | None
    """Experts at all S + T - 1 positions that were fed; None for a dense model."""
    counts: RoutingCounts | None

    @staticmethod
    def cat(parts: "list[Responses]") -> "Responses":
        """Several batches as one; prompts must have been padded to one length."""
        return Responses(
            token_ids_BT=torch.cat([part.token_ids_BT for part in parts]),
            is_response_BT=torch.cat([part.is_response_BT for part in parts]),
            token_logprob_BT=torch.cat([part.token_logprob_BT for part in parts]),
            trace=None if parts[0].trace is None else RoutingTrace.cat([part.trace for part in parts]),
            counts=None if parts[0].counts is None else sum((part.counts for part in parts[1:]), parts[0].counts),
        )


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """One rank's share of a step's rollouts: P prompts x G, prompt-major."""

    prompts: PreparedPrompts
    """P prompts with their pictures."""
    responses: Responses
    """P * G."""
    texts: list[str]
    """Decoded responses."""
    reward_B: Tensor
    group_size: int
    stream_B: Tensor
    """Rollout ids: they and the seed determine all sampling noise."""
