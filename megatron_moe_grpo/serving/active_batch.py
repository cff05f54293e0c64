"""The sequences that are being decoded: token by token, with others joining and leaving in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.routing_records import recorded_experts_BSLK
from megatron_moe_grpo.mcore.slot_cache import SlotCache
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.token_sampling import choose_tokens
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.serving.generation import Job, ScoredToken

# Experts and tokens of a request are drawn with its own seed, which is part of each sequence's stream.
POLICY = SelectionPolicy(guidance="multinomial", seed=0)


@dataclass(eq=False)
class ActiveSequence:
    """One job under way."""

    job: Job
    token_ids: list[int] = field(default_factory=list)
    experts_SLK: list[list[list[int]]] = field(default_factory=list)


class ActiveBatch:
    """Rows of one batch, their cache, and their jobs, kept in step; for one thread, inside `decoding_mode`.

    Between two calls every row holds one token more than the cache: the one that is fed next.
    """

    def __init__(self, model: VisionLanguageModel, processing: Processing, num_slots: int, max_positions: int):
        self._model, self._processing = model, processing
        self._cache = SlotCache(model, num_slots, max_positions)
        self._hand_over, self._sizes = route_with(model), router_sizes(model.config)
        self._device = next(model.parameters()).device
        self._suppressed = torch.tensor(processing.suppressed_token_ids, device=self._device)
        self._batch: TokenBatch | None = None
        self.sequences: list[ActiveSequence] = []

    def join(self, jobs: Sequence[Job]) -> list[tuple[ActiveSequence, ScoredToken]]:
        """Reads the prompts of `jobs`; returns each with its first token."""
        length = max(len(job.prompt.ids) for job in jobs)
        if self._batch is not None:
            # Fed so far: all but the last column.
            length = max(length, self._batch.token_ids_BS.shape[1] - 1)
            self._resize(length + 1)
        prompts = list({id(job.prompt): job.prompt for job in jobs}.values())
        seen = self._padded(prompts, length)
        features_FD = None if seen.pixel_values is None else self._model.image_features(seen)
        place = {id(prompt): index for index, prompt in enumerate(prompts)}
        rows_B = torch.tensor([place[id(job.prompt)] for job in jobs], device=self._device)
        new = [ActiveSequence(job) for job in jobs]
        batch = replace(seen.select(rows_B), pixel_values=None, grid_V3=None)
        logits_BV = self._routed(batch, batch, new, lambda fed: self._cache.join(fed, features_FD))
        token_B, scored = self._choose(logits_BV, batch, new)
        batch = batch.extended(token_B[:, None], torch.ones_like(token_B[:, None], dtype=torch.bool))
        self._batch = batch if self._batch is None else _cat(self._batch, batch)
        self.sequences += new
        return list(zip(new, scored, strict=True))

    def step(self) -> list[tuple[ActiveSequence, ScoredToken]]:
        """One token for every sequence."""
        batch = self._batch
        last_B1 = batch.token_ids_BS[:, -1:]
        new = TokenBatch(last_B1, torch.ones_like(last_B1, dtype=torch.bool), torch.full_like(last_B1, -1))
        logits_BV = self._routed(new, batch, self.sequences, self._cache.step)
        token_B, scored = self._choose(logits_BV, batch, self.sequences)
        self._batch = batch.extended(token_B[:, None], torch.ones_like(token_B[:, None], dtype=torch.bool))
        return list(zip(self.sequences, scored, strict=True))

    def keep(self, sequences: Sequence[ActiveSequence]) -> None:
        """Only these stay; the batch shrinks to the longest of them."""
        if len(sequences) == len(self.sequences):
            return
        place = {id(sequence): index for index, sequence in enumerate(self.sequences)}
        index_B = torch.tensor([place[id(sequence)] for sequence in sequences], device=self._device, dtype=torch.long)
        self._cache.keep(index_B)
        self.sequences = list(sequences)
        self._batch = self._batch.select(index_B) if sequences else None
        if self._batch is not None:
            self._resize(int(self._batch.is_real_BS.sum(dim=1).max()))

    def num_positions(self, sequence: ActiveSequence) -> int:
        """Of its prompt and the tokens so far."""
        return len(sequence.job.prompt.ids) + len(sequence.token_ids)

    def _padded(self, prompts: Sequence, length: int) -> TokenBatch:
        processing = self._processing
        return pad_prompts(
            [prompt.ids for prompt in prompts],
            [prompt.visuals for prompt in prompts],
            processing.vision_token_ids,
            processing.pad_token_id,
            length,
            [prompt.rope_position_3S for prompt in prompts],
        ).to(self._device)

    def _resize(self, num_columns: int) -> None:
        """The batch gets or loses padding on the left, and the cache moves along."""
        self._batch = _resized(self._batch, num_columns)
        self._cache.move_to(num_columns - 1)

    def _routed(
        self,
        new: TokenBatch,
        so_far: TokenBatch,
        sequences: Sequence[ActiveSequence],
        forward: Callable[[TokenBatch], Tensor],
    ) -> Tensor:
        """Logits of the new positions' last one, experts chosen as each sequence asks."""
        context = self._context(new, so_far, sequences)
        self._hand_over(context)
        try:
            fed = replace(new, is_real_BS=so_far.is_real_BS, rope_position_3BS=so_far.rope_position_3BS)
            logits_BV = forward(fed)
        finally:
            self._hand_over(None)
        if context is not None and any(sequence.job.sampling.returns_routing for sequence in sequences):
            experts_BSLK = recorded_experts_BSLK(context)
            for row, sequence in enumerate(sequences):
                if sequence.job.sampling.returns_routing:
                    sequence.experts_SLK += experts_BSLK[row][new.is_real_BS[row]].tolist()
        return logits_BV

    def _context(
        self, new: TokenBatch, so_far: TokenBatch, sequences: Sequence[ActiveSequence]
    ) -> RoutingContext | None:
        if self._sizes is None:
            return None
        samples = [sequence.job.sampling.mode is RouteMode.SAMPLE for sequence in sequences]
        if not any(samples):
            return RoutingContext(RouteMode.TOP_K, new.is_real_BS, new.is_vision_BS, self._sizes, POLICY)
        position_BS = so_far.position_BS[:, -new.token_ids_BS.shape[1] :]
        return RoutingContext(
            mode=RouteMode.SAMPLE,
            is_real_BS=new.is_real_BS,
            is_vision_BS=new.is_vision_BS,
            sizes=self._sizes,
            policy=POLICY,
            explores_BS=torch.tensor(samples, device=self._device)[:, None].expand_as(new.is_real_BS),
            noise_LBSN=POLICY.noise_LBSN(self._streams(sequences), position_BS, self._sizes),
        )

    def _choose(
        self, logits_BV: Tensor, so_far: TokenBatch, sequences: Sequence[ActiveSequence]
    ) -> tuple[Tensor, list[ScoredToken]]:
        """The next token of each row, and what is reported of it."""
        allowed_BV = logits_BV.index_fill(1, self._suppressed, float("-inf"))
        stream_B, position_B1 = self._streams(sequences), so_far.position_BS[:, -1:] + 1
        token_B = torch.empty_like(stream_B)
        ways = [(sequence.job.sampling.temperature, sequence.job.sampling.top_p) for sequence in sequences]
        for way in set(ways):
            rows_B = torch.tensor([row for row, other in enumerate(ways) if other == way], device=self._device)
            token_B[rows_B] = choose_tokens(allowed_BV[rows_B], stream_B[rows_B], position_B1[rows_B], 0, *way)
        logprob_BV = logits_BV.log_softmax(dim=-1)
        scored = []
        for row, sequence in enumerate(sequences):
            token_id = int(token_B[row])
            scored.append(scored_token(logprob_BV[row], token_id, sequence.job.sampling.num_top_logprobs))
            sequence.token_ids.append(token_id)
        return token_B, scored

    def _streams(self, sequences: Sequence[ActiveSequence]) -> Tensor:
        return torch.tensor([sequence.job.stream for sequence in sequences], device=self._device)


def scored_token(logprob_V: Tensor, token_id: int, num_top: int) -> ScoredToken:
    """A token beside the most likely ones in its place."""
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        values, ids = logprob_V.topk(min(num_top, len(logprob_V)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return ScoredToken(token_id, float(logprob_V[token_id]), top)


def _resized(batch: TokenBatch, num_columns: int) -> TokenBatch:
    by = num_columns - batch.token_ids_BS.shape[1]
    rope = batch.rope_position_3BS
    return replace(
        batch,
        token_ids_BS=pad(batch.token_ids_BS, (by, 0)),
        is_real_BS=pad(batch.is_real_BS, (by, 0)),
        image_slot_BS=pad(batch.image_slot_BS, (by, 0), value=-1),
        rope_position_3BS=None if rope is None else pad(rope, (by, 0)),
    )


def _cat(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    ropes = (first.rope_position_3BS, second.rope_position_3BS)
    return replace(
        first,
        token_ids_BS=torch.cat((first.token_ids_BS, second.token_ids_BS)),
        is_real_BS=torch.cat((first.is_real_BS, second.is_real_BS)),
        image_slot_BS=torch.cat((first.image_slot_BS, second.image_slot_BS)),
        rope_position_3BS=None if ropes[0] is None else torch.cat(ropes, dim=1),
    )
