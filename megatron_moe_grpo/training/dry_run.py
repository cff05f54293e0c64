"""Everything that a run checks before its first step, on one process, without its weights and its other ranks."""

import json
from pathlib import Path

import torch

from megatron_moe_grpo.config import RunConfig
from megatron_moe_grpo.config.checks import check_config, check_data_parallel
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank, smallest_world_size
from megatron_moe_grpo.mcore.optimizer import freeze_parts
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.prompts import check_and_encode, check_positions
from megatron_moe_grpo.training.kl_control import KlControl


def dry_run(config: RunConfig, world_size: int | None = None) -> str:
    """A summary of the run that `config` describes.

    Args:
        world_size: processes it will have; None: the fewest that hold the model.
    Raises:
        ConfigError, DataError, CheckpointError: what `train` would raise before its first step.
    """
    assets = Path(config.model.checkpoint) / "assets"
    hf_config = read_hf_config(assets)
    family = family_of(hf_config)
    text = family.parse_architecture(hf_config).text
    check_config(config, text)
    world_size = world_size or smallest_world_size(config.parallel)
    with imagined_rank(config.parallel, 0, world_size) as layout:
        check_data_parallel(config, layout.data_size)
        with torch.device("meta"):
            stage = (layout.is_first_stage, layout.is_last_stage)
            model = build_model(hf_config, config.parallel, config.precision, *stage)
        freeze_parts(model, config.model.freeze)
        data_size = layout.data_size
    counts = parameter_counts(family.weight_map(hf_config), text.num_active)
    lines = {
        "run": f"{config.name}, method {config.method}, {config.precision}, seed {config.seed}",
        "model": f"{hf_config['model_type']}, {counts}",
        "processes": f"{world_size}, of which {data_size} data-parallel; {json.dumps(config.parallel.model_dump())}",
        "work": _work(config),
    }
    if config.method != "sft":
        lines["reward"] = json.dumps(config.reward.model_dump())
        lines["KL weight"] = _kl_weights(config)
    lines |= _rows(config, family.processing.from_folder(assets), text.max_positions)
    return "\n".join(f"{name:10} {line}" for name, line in lines.items())


def _work(config: RunConfig) -> str:
    training = config.training
    prompts = training.steps * training.prompts_per_step
    if config.method == "sft":
        return f"{training.steps:,} steps of {training.prompts_per_step} rows: {prompts:,} rows"
    rollouts = f"{prompts:,} prompts, {prompts * config.rollout.group_size:,} rollouts"
    return f"{training.steps:,} steps of {training.prompts_per_step} prompts: {rollouts}"


def _kl_weights(config: RunConfig) -> str:
    if config.kl.schedule == "none":
        return "none: no reference model"
    control, steps = KlControl(config.kl, config.training.steps), config.training.steps
    if config.kl.schedule == "adaptive":
        return f"adaptive, from {control.beta_at(0):.4g} towards {config.kl.target_nats:.4g} nats a token"
    betas = [control.beta_at(step) for step in range(steps)]
    lowest = min(range(steps), key=betas.__getitem__)
    schedule = f"{config.kl.schedule}: {betas[0]:.4g} at the first step"
    return f"{schedule}, {betas[lowest]:.4g} at step {lowest}, {betas[-1]:.4g} at the last"


def _rows(config: RunConfig, processing: Processing, max_positions: int) -> dict[str, str]:
    """Rows of both data files, read, checked and encoded as training does."""
    judge, found = Judge(config.reward), {}
    for name, path in (("training", config.data.train), ("held out", config.data.evaluation)):
        if path is None:
            continue
        is_taught = name == "training" and config.method == "sft"
        loaded, rows = check_and_encode(path, config.data, processing, judge, is_taught)
        check_positions(rows, config.rollout.max_new_tokens, max_positions)
        longest = max(len(row.prompt_ids) for row in rows)
        found[name] = f"{len(rows):,} rows, longest prompt {longest} tokens, {len(loaded.skipped)} bad rows skipped"
    return found
