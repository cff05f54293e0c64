"""Everything that is loaded before the first row is answered: rows, model, and the settings of both passes."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import DataConfig, RunConfig
from megatron_moe_grpo.data.sources import LoadedRows, load_rows
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES
from megatron_moe_grpo.evaluation.analysis.measure import Subject
from megatron_moe_grpo.evaluation.analysis.source import AnalysisSource
from megatron_moe_grpo.mcore.moe_layers import RouterSizes, router_sizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.convert import load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import EncodedRow, check_positions, check_rows, encode_rows
from megatron_moe_grpo.routing.guidance import guidance_mask
from megatron_moe_grpo.routing.trace import RouteMode


@dataclass(frozen=True)
class AnalysisOptions:
    """What a user may choose; None: as in the run, or the defaults of training's settings."""

    data: Path | None = None
    num_examples: int = 12
    num_routes: int = 8
    num_rows: int | None = None
    image_root: Path | None = None
    prompt_template: str | None = None
    max_new_tokens: int | None = None
    sequences_per_forward: int = 256


@dataclass(frozen=True)
class Prepared:
    """What the passes need."""

    subject: Subject
    rows: list[EncodedRow]
    num_skipped: int
    """Bad rows that the run's `data.on_bad_row: skip` left out."""
    video_frames: int


def prepare(source: AnalysisSource, options: AnalysisOptions, layout: ParallelLayout) -> Prepared:
    """Reads the rows and loads the checkpoint.

    Raises:
        ConfigError, DataError: no rows, bad rows, or rows that are too long for the model.
        CheckpointError: a checkpoint that is not what its manifest says.
    """
    assets, config = source.checkpoint / "assets", source.config
    hf_config = read_hf_config(assets)
    family = family_of(hf_config)
    processing, judge = family.processing.from_folder(assets), Judge(source.reward)
    loaded = _load_rows(source, options, processing, judge)
    video_frames = VIDEO_FRAMES if config is None else config.data.video_frames
    template = options.prompt_template or ("plain" if config is None else config.data.prompt_template)
    rows = encode_rows(loaded.rows[: options.num_rows], processing, video_frames, template, answers=None)
    max_new_tokens = options.max_new_tokens or (2 if config is None else config.rollout.max_new_tokens)
    check_positions(rows, max_new_tokens, family.parse_architecture(hf_config).text.max_positions)
    model = load_model(source.checkpoint)
    top_k, sampled = _settings(source, processing, max_new_tokens, router_sizes(model.config), layout)
    subject = Subject(
        model, layout, processing, judge, top_k, sampled, options.num_routes, options.sequences_per_forward
    )
    return Prepared(subject, rows, len(loaded.skipped), video_frames)


def _load_rows(source: AnalysisSource, options: AnalysisOptions, processing: Processing, judge: Judge) -> LoadedRows:
    """The run's own rows as the run reads them; other rows must all be good."""
    rows_file, config = source.rows_file(options.data), source.config
    if options.data is None and config is not None:
        return check_rows(str(rows_file), _own_data(config, options), processing, judge, is_taught=False)
    frames = VIDEO_FRAMES if config is None else config.data.video_frames
    return load_rows(rows_file, options.image_root, known_problem=judge.problem_with, video_frames=frames)


def _own_data(config: RunConfig, options: AnalysisOptions) -> DataConfig:
    if options.image_root is None:
        return config.data
    return config.data.model_copy(update={"image_root": str(options.image_root)})


def _settings(
    source: AnalysisSource,
    processing: Processing,
    max_new_tokens: int,
    sizes: RouterSizes | None,
    layout: ParallelLayout,
) -> tuple[DecodeSettings, DecodeSettings]:
    """Of the pass under top-K and of the one under sampled routes; tokens are greedy in both."""
    top_k = DecodeSettings(
        mode=RouteMode.TOP_K,
        policy=_policy(source),
        max_new_tokens=max_new_tokens,
        end_token_id=processing.eos_token_id,
        suppressed_token_ids=torch.tensor(processing.suppressed_token_ids, device=layout.device),
    )
    mask_L2N = None if sizes is None else _mask(source, sizes, layout)
    explores_prompt = source.routing.explore == "all"
    sampled = replace(top_k, mode=RouteMode.SAMPLE, is_allowed_L2N=mask_L2N, explores_prompt=explores_prompt)
    if source.routing.guidance_at_inference:
        top_k = replace(top_k, is_allowed_L2N=mask_L2N)
    return top_k, sampled


def _policy(source: AnalysisSource) -> SelectionPolicy:
    routing = source.routing
    return SelectionPolicy(
        guidance=routing.guidance,
        likelihood=routing.likelihood,
        noise_std=routing.noise_std,
        temperature=routing.temperature,
        seed=0 if source.config is None else source.config.seed,
    )


def _mask(source: AnalysisSource, sizes: RouterSizes, layout: ParallelLayout) -> Tensor | None:
    """The guidance mask that training would sample under now; none before anything was counted."""
    counts = source.trained_counts()
    if source.routing.guidance != "modality" or counts is None:
        return None
    return guidance_mask(counts, source.routing.guidance_fraction, sizes.num_active).to(layout.device)
