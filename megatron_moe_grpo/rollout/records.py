"""What a rollout leaves behind: values that travel together from decoding to the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_moe_grpo.rewards.judge import Judgement
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

    def select(self, index_B: Tensor) -> "Responses":
        """Responses by index, in that order; counts are sums over all of them and cannot be split: None."""
        return Responses(
            token_ids_BT=self.token_ids_BT[index_B],
            is_response_BT=self.is_response_BT[index_B],
            token_logprob_BT=self.token_logprob_BT[index_B],
            trace=None if self.trace is None else self.trace.select(index_B),
            counts=None,
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
    judgements: list[Judgement]
    reward_B: Tensor
    """Their rewards, less what the response's length costs (`rollout.overlong_tokens`)."""
    group_size: int
    stream_B: Tensor
    """Rollout ids: they and the seed determine all sampling noise."""
    reference_logprob_BT: Tensor | None = None
    """Log-probability of each token under the reference policy, nats, float32, for the KL term; None without one."""

    def padded_to(self, num_positions: int) -> "RolloutBatch":
        """The same rollouts with their prompts, and so the trace, padded on the left to `num_positions`."""
        num_left, trace = num_positions - self.prompts.num_positions, self.responses.trace
        if trace is not None:
            trace = trace.pad_positions(num_left, 0)
        prompts = replace(self.prompts, num_positions=num_positions)
        return replace(self, prompts=prompts, responses=replace(self.responses, trace=trace))

    def select(self, places: Sequence[int]) -> "RolloutBatch":
        """Whole groups by their place, in that order; without counts (see `Responses.select`)."""
        place_P1 = torch.tensor(places, dtype=torch.long, device=self.stream_B.device)[:, None]
        group_G = torch.arange(self.group_size, device=self.stream_B.device)
        index_B = (place_P1 * self.group_size + group_G).flatten()
        rows, visuals = self.prompts.rows, self.prompts.visuals
        return replace(
            self,
            prompts=replace(
                self.prompts, rows=[rows[place] for place in places], visuals=[visuals[place] for place in places]
            ),
            responses=self.responses.select(index_B),
            texts=[self.texts[index] for index in index_B.tolist()],
            judgements=[self.judgements[index] for index in index_B.tolist()],
            reward_B=self.reward_B[index_B],
            stream_B=self.stream_B[index_B],
            reference_logprob_BT=None if self.reference_logprob_BT is None else self.reference_logprob_BT[index_B],
        )

    @staticmethod
    def cat(parts: "Sequence[RolloutBatch]") -> "RolloutBatch":
        """Several batches as one, padded to the longest prompts among them; responses have one padded length anyway."""
        num_positions = max(part.prompts.num_positions for part in parts)
        parts = [part.padded_to(num_positions) for part in parts]
        references = [part.reference_logprob_BT for part in parts if part.reference_logprob_BT is not None]
        assert len(references) in (0, len(parts)), "either all parts have reference log-probs or none has"
        return replace(
            parts[0],
            prompts=replace(
                parts[0].prompts,
                rows=[row for part in parts for row in part.prompts.rows],
                visuals=[visual for part in parts for visual in part.prompts.visuals],
            ),
            responses=Responses.cat([part.responses for part in parts]),
            texts=[text for part in parts for text in part.texts],
            judgements=[judgement for part in parts for judgement in part.judgements],
            reward_B=torch.cat([part.reward_B for part in parts]),
            stream_B=torch.cat([part.stream_B for part in parts]),
            reference_logprob_BT=torch.cat(references) if references else None,
        )
