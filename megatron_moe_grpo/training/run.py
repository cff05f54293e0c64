"""Everything a training loop stands on, built and checked in order: nothing slow before the last check has passed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config import RunConfig, dump_config
from megatron_moe_grpo.config.checks import check_config, check_data_parallel
from megatron_moe_grpo.data.order import BatchOrder
from megatron_moe_grpo.data.sources import LoadedRows
from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.checkpoint_saver import CheckpointSaver
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
from megatron_moe_grpo.training.hang_watch import HangWatch
from megatron_moe_grpo.training.kl_control import KlControl
from megatron_moe_grpo.training.phases import Phases
from megatron_moe_grpo.training.reference import ReferencePolicy, load_reference
from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_lock import lock_run
from megatron_moe_grpo.training.run_log import RunLog, open_run_log
from megatron_moe_grpo.training.run_state import RunState, load_start
from megatron_moe_grpo.training.stop_signal import StopSignal
from megatron_moe_grpo.training.update_guard import UpdateGuard


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
    stop: StopSignal
    watch: HangWatch
    guard: UpdateGuard
    phases: Phases
    state: RunState
    saver: CheckpointSaver
    resumed: dict[str, Any]
    """state.json of the checkpoint that this run goes on from; {} at its first start."""
    first_step: int
    """Steps done when the run began this time."""
    steps_done: int

    @property
    def model(self) -> Any:
        """The bare model, without the data-parallel wrapper."""
        return self.trainable.module

    def steps(self) -> Iterator[int]:
        """The steps that are left, from 0; `steps_done` counts them."""
        for step in range(self.first_step, self.config.training.steps):
            yield step
            self.steps_done = step + 1

    def between_tokens(self) -> bool:
        """For rollouts: the run moves on; True if it was asked to stop."""
        self.watch.beat()
        return bool(self.stop.name)

    def step_rows(self, step: int) -> StepRows:
        """Rows of `step` (from 0), the same list on every rank."""
        # The weights are about to change.
        self.state.accuracy = None
        rows = [self.train_rows[index] for index in self.order.indices(step)]
        per_step = self.config.training.prompts_per_step * self.config.rollout.group_size
        return StepRows(rows, first_stream=step * per_step)

    def is_due(self, every: int, done: int) -> bool:
        """True after `done` steps when something happens every so many, and always after the last."""
        return done == self.config.training.steps or (every > 0 and done % every == 0)

    def save(self, done: int, more: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint that continues after `done` steps, then removes the oldest; the last one is waited for.

        Args:
            more: what state.json shall say besides; a resumed run finds it in `resumed`.
        """
        self.saver.save(done, self.trainable, self.assets, self.state.values(done) | (more or {}))
        if done == self.config.training.steps:
            self.saver.wait()


def start_run(config: RunConfig) -> Run:
    """Checks, then builds; resumes where the run folder's newest checkpoint ends."""
    source = Path(config.model.checkpoint)
    hf_config = _read_model_config(source)
    family = family_of(hf_config)
    text, counts = family.parse_architecture(hf_config).text, None
    check_config(config, text)
    layout = start_parallel(config.parallel, config.seed)
    check_data_parallel(config, layout.data_size)
    folder = on_main_rank(lambda: _open_folder(config))
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
    _say_reference(reference, layout)
    stop, guard = StopSignal(layout), UpdateGuard(config.stability, is_loss_signed=config.method != "sft")
    watch = HangWatch(config.stability.hang_timeout_s, folder.stacks, layout.rank)
    state = RunState(config.seed, counts, kl, guard)
    resumed = load_start(source, folder.checkpoints, trainable, state)
    first_step = resumed.get("step", 0)
    saver = CheckpointSaver(
        folder.checkpoints, training.keep_checkpoints, training.keep_best, training.async_save, resumed.get("step")
    )
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
        stop=stop,
        watch=watch,
        guard=guard,
        phases=Phases(lambda name: (watch.beat(name), saver.advance(), stop.before_phase(name))),
        state=state,
        saver=saver,
        resumed=resumed,
        first_step=first_step,
        steps_done=first_step,
    )


def _say_reference(reference: ReferencePolicy | None, layout: ParallelLayout) -> None:
    if reference is not None and layout.is_main:
        print(f"reference policy: {reference.own_bytes / 1e6:,.1f} MB of its own on each process like this one")


def _open_folder(config: RunConfig) -> RunFolder:
    folder = RunFolder.open(Path(config.output_dir) / config.name, dump_config(config))
    lock_run(folder.root)
    return folder


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
