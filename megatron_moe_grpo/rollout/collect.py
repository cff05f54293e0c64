"""The rollout loop: prompts in, groups of (tokens, routing trace, log-probs, rewards) out.  MoE-GRPO 3.3."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.losses.overlong import overlong_penalty
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rewards.judge import Judgement, Question
from megatron_moe_grpo.rollout.decode import DecodeSettings, decode
from megatron_moe_grpo.rollout.interruption import BetweenTokens, never
from megatron_moe_grpo.rollout.prompts import EncodedRow, padded_positions, prepare_prompts
from megatron_moe_grpo.rollout.records import Responses, RolloutBatch
from megatron_moe_grpo.routing.trace import RouteMode


@dataclass(frozen=True)
class StepRows:
    """The rows of one step: the same list on every rank, of which each data-parallel rank takes its slice."""

    rows: Sequence[EncodedRow]
    first_stream: int
    """Rollout id of the step's first rollout; ids are never used twice in a run."""
    places: Sequence[int] | None = None
    """Only these of the rank's slice are rolled out, equally many on every rank; None: all of them."""

    def share(self, layout: ParallelLayout) -> tuple[Sequence[EncodedRow], int]:
        """This rank's rows and the index of its first one."""
        size = len(self.rows) // layout.data_size
        return self.rows[layout.data_rank * size : (layout.data_rank + 1) * size], layout.data_rank * size


def collect_rollouts(
    model: VisionLanguageModel,
    layout: ParallelLayout,
    step_rows: StepRows,
    processing: Processing,
    settings: DecodeSettings,
    judge: Callable[[str, Question], Judgement],
    group_size: int,
    prompts_per_forward: int,
    blank_images: bool = False,
    overlong_tokens: int = 0,
) -> RolloutBatch:
    """Decodes and judges G responses to each of this rank's prompts; all ranks call it together.

    The vision tower sees each picture once, whatever G; every rollout routes its own prompt.
    `overlong_tokens`: DAPO's soft punishment of length is part of the reward (`overlong_penalty`).
    """
    rows, first = step_rows.share(layout)
    places = range(len(rows)) if step_rows.places is None else step_rows.places
    rows = [rows[place] for place in places]
    num_positions = padded_positions(step_rows.rows, settings.max_new_tokens - 1, layout.tensor_size)
    prompts = prepare_prompts(rows, num_positions, processing, blank_images)
    device = settings.suppressed_token_ids.device
    place_P1 = torch.tensor(places, device=device)[:, None]
    stream_B = ((first + place_P1) * group_size + torch.arange(group_size, device=device)).flatten()
    stream_B = step_rows.first_stream + stream_B
    parts = []
    with decoding_mode(model):
        for start in range(0, len(rows), prompts_per_forward):
            stop = min(start + prompts_per_forward, len(rows))
            batch = prompts.batch(start, stop)
            features_FD = None
            if layout.is_first_stage and batch.pixel_values is not None:
                features_FD = model.image_features(batch)
            streams = stream_B[start * group_size : stop * group_size]
            parts.append(decode(model, layout, batch.repeated(group_size), streams, settings, features_FD))
    responses = Responses.cat(parts)
    texts = _texts(responses, processing)
    judgements = [judge(text, rows[index // group_size].row) for index, text in enumerate(texts)]
    reward_B = torch.tensor([judgement.reward for judgement in judgements], device=device)
    reward_B = reward_B + overlong_penalty(
        responses.is_response_BT.sum(dim=1), settings.max_new_tokens, overlong_tokens
    )
    return RolloutBatch(prompts, responses, texts, judgements, reward_B, group_size, stream_B)


def rollout_settings(
    config: RunConfig,
    processing: Processing,
    is_allowed_L2N: Tensor | None,
    between_tokens: BetweenTokens = never,
) -> DecodeSettings:
    """How training explores."""
    routing, device = config.routing, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return DecodeSettings(
        mode=RouteMode.SAMPLE,
        policy=selection_policy(config),
        max_new_tokens=config.rollout.max_new_tokens,
        end_token_id=processing.eos_token_id,
        suppressed_token_ids=torch.tensor(processing.suppressed_token_ids, device=device),
        token_temperature=config.rollout.token_temperature,
        token_top_p=config.rollout.token_top_p,
        explores_prompt=routing.explore == "all",
        is_allowed_L2N=is_allowed_L2N,
        between_tokens=between_tokens,
    )


def inference_settings(training: DecodeSettings, uses_guidance: bool) -> DecodeSettings:
    """Deterministic top-K experts and greedy tokens."""
    return replace(
        training,
        mode=RouteMode.TOP_K,
        token_temperature=0.0,
        is_allowed_L2N=training.is_allowed_L2N if uses_guidance else None,
    )


def selection_policy(config: RunConfig) -> SelectionPolicy:
    """The part of the settings that routers need."""
    routing = config.routing
    return SelectionPolicy(
        guidance=routing.guidance,
        likelihood=routing.likelihood,
        noise_std=routing.noise_std,
        temperature=routing.temperature,
        seed=config.seed,
        assignment=routing.assignment,
        sinkhorn_iterations=routing.sinkhorn_iterations,
    )


def _texts(responses: Responses, processing: Processing) -> list[str]:
    tokens, masks = responses.token_ids_BT.tolist(), responses.is_response_BT.tolist()
    return [
        processing.decode([token for token, is_response in zip(row, mask, strict=True) if is_response])
        for row, mask in zip(tokens, masks, strict=True)
    ]
