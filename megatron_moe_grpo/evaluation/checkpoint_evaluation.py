"""Evaluation of a Megatron checkpoint outside training, on one process."""

from pathlib import Path

import torch

from megatron_moe_grpo.config.schema import ParallelConfig, RewardConfig
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES
from megatron_moe_grpo.evaluation.accuracy import ExampleRecord
from megatron_moe_grpo.evaluation.policy_evaluation import evaluate_policy
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.convert import load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import check_positions, encode_rows
from megatron_moe_grpo.routing.trace import RouteMode


def evaluate_checkpoint(
    checkpoint: Path,
    rows_file: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    blank_images: bool = False,
    image_root: Path | None = None,
    video_frames: int = VIDEO_FRAMES,
    prompts: str = "plain",
    reward: RewardConfig | None = None,
) -> list[ExampleRecord]:
    """Greedy answers with top-K experts to every row, in file order.  Arguments as for `evaluate_hf_folder`."""
    assets = checkpoint / "assets"
    hf_config = read_hf_config(assets)
    family = family_of(hf_config)
    processing = family.processing.from_folder(assets)
    judge = Judge(reward or RewardConfig())
    loaded = load_rows(rows_file, image_root, known_problem=judge.problem_with, video_frames=video_frames)
    rows = encode_rows(loaded.rows, processing, video_frames, prompts, answers=None)
    check_positions(rows, max_new_tokens, family.parse_architecture(hf_config).text.max_positions)
    layout = start_parallel(ParallelConfig(), seed=0)
    settings = DecodeSettings(
        mode=RouteMode.TOP_K,
        policy=SelectionPolicy(),
        max_new_tokens=max_new_tokens,
        end_token_id=processing.eos_token_id,
        suppressed_token_ids=torch.tensor(processing.suppressed_token_ids, device=layout.device),
    )
    evaluation = evaluate_policy(
        load_model(checkpoint), layout, rows, processing, settings, judge, batch_size, blank_images
    )
    stop_parallel()
    place = {row.row.id: index for index, row in enumerate(rows)}
    return sorted(evaluation.records, key=lambda record: place[record.id])
