"""Everything a training loop stands on, built and checked in order: nothing slow before the last check has passed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_moe_grpo.config import RunConfig, dump_config
from megatron_moe_grpo.config.checks import check_config, check_data_parallel
from megatron_moe_grpo.data.order import BatchOrder
from megatron_moe_grpo.data.sources import LoadedRows
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
    step_folder,
)
from megatron_moe_grpo.mcore.optimizer import TrainableModel, freeze_parts, make_trainable
from megatron_moe_grpo.mcore.parallel import ParallelLayout, on_main_rank, start_parallel
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.collect import StepRows
from megatron_moe_grpo.rollout.prompts import EncodedRow, check_and_encode, check_positions
from megatron_moe_grpo.routing.guidance import ModalityCounts
from megatron_moe_grpo.training.console import StepProgress
from megatron_moe_grpo.training.kl_control import KlControl
from megatron_moe_grpo.training.reference import ReferencePolicy, load_reference
from megatron_moe_grpo.training.run_folder import RunFolder, write_atomically
from megatron_moe_grpo.training.run_log import RunLog, open_run_log


@dataclass
class Run:
    """One training run on one rank."""

    config: RunConfig
    layout: ParallelLayout
    folder: RunFolder
    log: RunLog
    progress: StepProgress
    processing: Processing
    assets: Path
    trainable: TrainableModel
    judge: Judge
    train_rows: list[EncodedRow]
    evaluation_rows: list[EncodedRow]
    order: BatchOrder
    counts: ModalityCounts | None
    """Running modality counts; None for a dense model."""
    reference: ReferencePolicy | None
    kl: KlControl | None
    """Both None without a KL term."""
    first_step: int
    """Steps already done."""

    @property
    def model(self) -> Any:
        """The bare model, without the data-parallel wrapper."""
        return self.trainable.module

    def step_rows(self, step: int) -> StepRows:
        """Rows of `step` (from 0), the same list on every rank."""
        rows = [self.train_rows[index] for index in self.order.indices(step)]
        per_step = self.config.training.prompts_per_step * self.config.rollout.group_size
        return StepRows(rows, first_stream=step * per_step)

    def is_due(self, every: int, done: int) -> bool:
        """True after `done` steps when something happens every so many, and always after the last."""
        return done == self.config.training.steps or (every > 0 and done % every == 0)

    def save(self, done: int) -> None:
        """Writes a checkpoint that continues after `done` steps, then removes the oldest."""
        state: dict[str, Any] = {"step": done, "seed": self.config.seed}
        if self.counts is not None:
            state["modality_counts"] = {name: tensor.tolist() for name, tensor in self.counts.state_dict().items()}
        if self.kl is not None:
            state["kl_beta"] = self.kl.state()
        folder = step_folder(self.folder.checkpoints, done)
        save_checkpoint(folder, self.model, self.assets, state, self.trainable)
        if self.layout.is_main:
            remove_old_checkpoints(self.folder.checkpoints, self.config.training.keep_checkpoints)


def start_run(config: RunConfig) -> Run:
    """Checks, then builds; resumes where the run folder's newest checkpoint ends."""
    source = Path(config.model.checkpoint)
    hf_config = _read_model_config(source)
    family = family_of(hf_config)
    text, counts = family.parse_architecture(hf_config).text, None
    check_config(config, text)
    layout = start_parallel(config.parallel, config.seed)
    check_data_parallel(config, layout.data_size)
    folder = on_main_rank(lambda: RunFolder.open(Path(config.output_dir) / config.name, dump_config(config)))
    processing = family.processing.from_folder(source / "assets")
    judge = Judge(config.reward)
    train_rows, evaluation_rows = _load_rows(config, processing, judge, folder)
    check_positions([*train_rows, *evaluation_rows], config.rollout.max_new_tokens, text.max_positions)
    model = build_model(hf_config, config.parallel, config.precision, layout.is_first_stage, layout.is_last_stage)
    freeze_parts(model, config.model.freeze)
    training = config.training
    trainable = make_trainable(model, config.optimizer, training.steps * training.updates_per_rollout)
    if text.num_experts is not None:
        counts = ModalityCounts(len(text.moe_layers), text.num_experts, config.routing.guidance_decay)
    has_kl = config.method != "sft" and config.kl.schedule != "none"
    kl = KlControl(config.kl, training.steps) if has_kl else None
    reference = load_reference(config, hf_config, model, layout) if has_kl else None
    if reference is not None and layout.is_main:
        print(f"reference policy: {reference.own_bytes / 1e6:,.1f} MB of its own on each process like this one")
    first_step = _load_weights(source, folder, trainable, counts, kl)
    log = open_run_log(folder, config.name, config.model_dump(mode="json"), config.logging, is_writer=layout.is_main)
    log.truncate_after(first_step if first_step > 0 else -1)
    return Run(
        config=config,
        layout=layout,
        folder=folder,
        log=log,
        progress=StepProgress(training.steps, first_step, is_shown=layout.is_main),
        processing=processing,
        assets=source / "assets",
        trainable=trainable,
        judge=judge,
        train_rows=train_rows,
        evaluation_rows=evaluation_rows,
        order=BatchOrder(len(train_rows), training.prompts_per_step, config.seed),
        counts=counts,
        reference=reference,
        kl=kl,
        first_step=first_step,
    )


def _read_model_config(source: Path) -> dict[str, Any]:
    path = source / "assets" / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "model.checkpoint is not a Megatron checkpoint of this project",
            got=source,
            expected="a folder with weights/, assets/config.json and manifest.json",
            remedy="make one from a Hugging Face folder with `python -m megatron_moe_grpo import HF_FOLDER OUT`",
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged", got=str(error), remedy="use another checkpoint") from error


def _load_rows(
    config: RunConfig, processing: Processing, judge: Judge, folder: RunFolder
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Training and held-out rows, checked (every picture is decoded) and encoded on the main rank, shared with all."""
    paths = [path for path in (config.data.train, config.data.evaluation) if path is not None]

    def check() -> list[list[EncodedRow]]:
        # Held-out rows are asked, never taught: they need no rationale, whatever the answer template says.
        is_taught = (config.method == "sft", False)
        found = [
            check_and_encode(path, config.data, processing, judge, taught)
            for path, taught in zip(paths, is_taught, strict=False)
        ]
        _list_bad_rows(folder, paths, [loaded for loaded, _ in found])
        return [encoded for _, encoded in found]

    train, *held_out = on_main_rank(check)
    return train, held_out[0] if held_out else []


def _list_bad_rows(folder: RunFolder, paths: list[str], loaded: list[LoadedRows]) -> None:
    """Written anew at every start, so that a resumed run lists each row once."""
    folder.bad_rows.unlink(missing_ok=True)
    lines = [
        json.dumps({"file": path, **vars(skipped)}) + "\n"
        for path, rows in zip(paths, loaded, strict=True)
        for skipped in rows.skipped
    ]
    if lines:
        write_atomically(folder.bad_rows, "".join(lines))
        print(f"{len(lines)} bad rows skipped, listed in {folder.bad_rows}")


def _load_weights(
    source: Path, folder: RunFolder, trainable: TrainableModel, counts: ModalityCounts | None, kl: KlControl | None
) -> int:
    """Fills the model from the run's newest checkpoint, or from model.checkpoint; returns the steps done."""
    newest = on_main_rank(lambda: newest_checkpoint(folder.checkpoints))
    if newest is None:
        load_checkpoint(source, trainable.module)
        trainable.optimizer.reload_model_params()
        return 0
    state = load_checkpoint(newest, trainable.module, trainable)
    if counts is not None:
        saved = state["modality_counts"]
        counts.load_state_dict({name: torch.tensor(rows, dtype=torch.float64) for name, rows in saved.items()})
    if kl is not None:
        kl.restore(state["kl_beta"])
    return state["step"]
