"""Prompts in, responses out: token-by-token decoding with the experts of every position recorded."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.decoding import CachedForward
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.routing_records import (
    join_forwards,
    recorded_entropy_L,
    recorded_experts_BSLK,
    recorded_logprob_BSL,
    recorded_top_k_L2N,
)
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.interruption import BetweenTokens, all_closed, never
from megatron_moe_grpo.rollout.records import Responses, RoutingCounts
from megatron_moe_grpo.rollout.token_sampling import choose_tokens
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace

STEPS_TOGETHER = 32
"""Decode steps whose selection noise is drawn, and whose records are worked out, in one go: more of them save no more
time, and their router logits must be kept."""


@dataclass(frozen=True, eq=False)
class DecodeSettings:
    """How to choose experts and tokens."""

    mode: RouteMode
    """SAMPLE in rollouts, TOP_K for evaluation."""
    policy: SelectionPolicy
    max_new_tokens: int
    end_token_id: int
    suppressed_token_ids: Tensor
    """Never produced (image placeholders and the like); log-probs are still those of the full vocabulary."""
    token_temperature: float = 0.0
    token_top_p: float = 1.0
    explores_prompt: bool = True
    """False: sample experts only where a response token is produced."""
    is_allowed_L2N: Tensor | None = None
    between_tokens: BetweenTokens = never


def decode(
    model: VisionLanguageModel,
    layout: ParallelLayout,
    prompts: TokenBatch,
    stream_B: Tensor,
    settings: DecodeSettings,
    features_FD: Tensor | None = None,
) -> Responses:
    """Decodes B sequences to their ends; call inside `decoding_mode`, on all ranks of the model together.

    Ranks stay in step (experts live on several of them), so everyone stops when the last sequence anywhere has ended.

    Raises:
        StopRequested: on all ranks, if `settings.between_tokens` asked for it on one.
    """
    num_sequences, num_prompt_positions = prompts.token_ids_BS.shape
    forward = CachedForward(model, layout, num_sequences, num_prompt_positions + settings.max_new_tokens)
    hand_over, recorder = route_with(model), _Recorder(model, layout)
    noise = _SelectionNoise(model, stream_B, settings)
    new, batch = prompts, prompts
    tokens, logprobs, was_open = [], [], []
    is_open_B = torch.ones(num_sequences, dtype=torch.bool, device=prompts.token_ids_BS.device)
    for step in range(settings.max_new_tokens):
        context = recorder.start(new, noise.of_step(step, batch), settings)
        hand_over(context)
        fed = replace(new, is_real_BS=batch.is_real_BS, rope_position_3BS=batch.rope_position_3BS)
        logits_BV = forward(fed, features_FD)
        recorder.finish(context)
        token_B = _choose_tokens(logits_BV, batch, stream_B, settings)
        logprob_B = torch.log_softmax(logits_BV, dim=-1).gather(1, token_B[:, None])[:, 0]
        tokens.append(token_B), logprobs.append(logprob_B), was_open.append(is_open_B)
        is_open_B = is_open_B & (token_B != settings.end_token_id)
        if all_closed(is_open_B, layout, bool(settings.between_tokens())):
            break
        features_FD = None
        batch = batch.extended(token_B[:, None], is_open_B[:, None])
        new = TokenBatch(token_B[:, None], is_open_B[:, None], torch.full_like(token_B[:, None], -1))
    hand_over(None)
    num_padding = settings.max_new_tokens - len(tokens)
    return Responses(
        token_ids_BT=_stack(tokens, num_padding, settings.end_token_id),
        is_response_BT=_stack(was_open, num_padding, False),
        token_logprob_BT=_stack(logprobs, num_padding, 0.0),
        trace=recorder.trace(num_padding, settings.is_allowed_L2N),
        counts=recorder.counts(),
    )


def _choose_tokens(logits_BV: Tensor, batch: TokenBatch, stream_B: Tensor, settings: DecodeSettings) -> Tensor:
    allowed_BV = logits_BV.index_fill(1, settings.suppressed_token_ids, float("-inf"))
    next_position_B1 = batch.position_BS[:, -1:] + 1
    seed, temperature = settings.policy.seed, settings.token_temperature
    return choose_tokens(allowed_BV, stream_B, next_position_B1, seed, temperature, settings.token_top_p)


def _stack(columns: list[Tensor], num_padding: int, filler: int | float | bool) -> Tensor:
    stacked_BT = torch.stack(columns, dim=1)
    return torch.nn.functional.pad(stacked_BT, (0, num_padding), value=filler)


class _Recorder:
    """Collects what the routers of this stage wrote, forward by forward, and joins the pipeline stages at the end."""

    def __init__(self, model: VisionLanguageModel, layout: ParallelLayout):
        self._sizes, self._layout = router_sizes(model.config), layout
        self._forwards: list[RoutingContext] = []
        self._experts_BSLK: list[Tensor] = []
        self._logprob_BSL: list[Tensor] = []
        self._counts: RoutingCounts | None = None

    def start(self, new: TokenBatch, noise_LBSN: Tensor | None, settings: DecodeSettings) -> RoutingContext | None:
        """The context of the next forward; None for a dense model."""
        if self._sizes is None:
            return None
        return RoutingContext(
            mode=settings.mode,
            is_real_BS=new.is_real_BS,
            is_vision_BS=new.is_vision_BS,
            sizes=self._sizes,
            policy=settings.policy,
            is_allowed_L2N=settings.is_allowed_L2N,
            explores_BS=None if settings.explores_prompt else _produces_response(new),
            noise_LBSN=noise_LBSN,
        )

    def finish(self, context: RoutingContext | None) -> None:
        """Takes over one forward's records."""
        if context is None:
            return
        self._forwards.append(context)
        if len(self._forwards) == STEPS_TOGETHER:
            self._work_out()

    def _work_out(self) -> None:
        """From kept records to trace and counts; layers of other stages hold zeros until they are summed."""
        if not self._forwards:
            return
        context = join_forwards(self._forwards)
        self._forwards = []
        self._experts_BSLK.append(recorded_experts_BSLK(context))
        self._logprob_BSL.append(recorded_logprob_BSL(context))
        counts = RoutingCounts(
            recorded_top_k_L2N(context), recorded_entropy_L(context), context.is_real_BS.sum().double()
        )
        self._counts = counts if self._counts is None else self._counts + counts

    def trace(self, num_padding: int, is_allowed_L2N: Tensor | None) -> RoutingTrace | None:
        """All positions and layers, padded on the right by the steps that no sequence needed."""
        self._work_out()
        if not self._experts_BSLK:
            return None
        experts_BSLK = self._layout.sum_over_pipeline(torch.cat(self._experts_BSLK, dim=1).int()).short()
        logprob_BSL = self._layout.sum_over_pipeline(torch.cat(self._logprob_BSL, dim=1))
        return RoutingTrace(experts_BSLK, logprob_BSL, is_allowed_L2N).pad_positions(0, num_padding)

    def counts(self) -> RoutingCounts | None:
        """Counts of this rank's sequences, all layers."""
        self._work_out()
        if self._counts is None:
            return None
        sum_over_pipeline = self._layout.sum_over_pipeline
        return RoutingCounts(
            sum_over_pipeline(self._counts.top_k_L2N),
            sum_over_pipeline(self._counts.entropy_sum_L),
            self._counts.num_tokens,
        )


class _SelectionNoise:
    """Noise of the prompt's positions, then of many steps at once."""

    def __init__(self, model: VisionLanguageModel, stream_B: Tensor, settings: DecodeSettings):
        self._sizes, self._stream_B, self._settings = router_sizes(model.config), stream_B, settings
        self._has_noise = (
            self._sizes is not None and settings.mode is RouteMode.SAMPLE and settings.policy.guidance != "none"
        )
        self._ahead_LBTN: Tensor | None = None

    def of_step(self, step: int, batch: TokenBatch) -> Tensor | None:
        """noise_LBSN of the new positions of `batch`: the prompt's at step 0, then the last one; None: no sampling."""
        if not self._has_noise:
            return None
        if step == 0:
            return self._draw(batch.position_BS)
        index = (step - 1) % STEPS_TOGETHER
        if index == 0:
            num_ahead = min(STEPS_TOGETHER, self._settings.max_new_tokens - step)
            # Positions go on from here; of sequences that end before, only padding is left and any noise will do.
            steps_T = torch.arange(num_ahead, device=batch.token_ids_BS.device)
            self._ahead_LBTN = self._draw(batch.position_BS[:, -1:] + steps_T)
        return self._ahead_LBTN[:, :, index : index + 1]

    def _draw(self, position_BS: Tensor) -> Tensor:
        return self._settings.policy.noise_LBSN(self._stream_B, position_BS, self._sizes)


def _produces_response(new: TokenBatch) -> Tensor:
    """True where a response token is produced: the last prompt position, then every position."""
    produces_BS = torch.zeros_like(new.is_real_BS)
    produces_BS[:, -1] = True
    return produces_BS
