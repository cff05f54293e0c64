"""From a table's file to commands.  Equal cells are one run, whichever table they stand in, whatever their name.

A run's folder carries a hash of its resolved settings and of the stages that it stands on, so a changed setting or
start is another folder, and nothing that was trained under other settings is ever taken for done.
"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_moe_grpo.config import RunConfig, load_config, parse_config
from megatron_moe_grpo.config.load import apply_overrides
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.experiments.jobs import Job, Step, beside
from megatron_moe_grpo.experiments.provenance import REPOSITORY
from megatron_moe_grpo.experiments.table_file import Cell, Evaluation, Setup, Table, reference

VERB = (sys.executable, "-m", "megatron_moe_grpo")
# First words of paths that a command of a file means relative to the repository.
REPOSITORY_FOLDERS = ("tools/", "examples/")
BARE = re.compile(r"[A-Za-z_./][\w./-]*")


@dataclass(frozen=True)
class PlannedRun:
    """One cell under one seed."""

    cell: Cell
    seed: int
    config: RunConfig
    folder: Path
    job: Job
    answers: dict[str, Path]
    """By evaluation: every answer of the last checkpoint."""


@dataclass(frozen=True)
class Plan:
    """Every run of a table."""

    starts: list[Job]
    """One a seed."""
    runs: list[PlannedRun]

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """Of these cells, seed after seed; a start comes along where one of its runs is not done."""
        names = [cell.name for cell in cells]
        runs = [run.job for run in self.runs if run.cell.name in names]
        starts = [start for start in self.starts if any(job.after is start and job.next_step for job in runs)]
        return starts + runs


def make_plan(table: Table, setup: Setup, base: Path, seeds: Sequence[int], out: Path) -> Plan:
    """Commands of every cell under `seeds`.  Raises ConfigError for settings that no recipe has, cells that are one and
    the same, and cells that see other data than the one they are compared with, without saying so (`changes_data`).

    Args:
        base: the recipe that every cell changes.
        out: folder of all starts and runs, of every table.
    """
    templates = {cell.name: _template(table, setup, base, cell) for cell in table.cells}
    _check_same_data(table, templates)
    stages_digest = _digest([stage.model_dump() for stage in setup.stages])
    digests = {
        name: _digest([template.model_dump(mode="json", exclude_defaults=True), stages_digest])
        for name, template in templates.items()
    }
    _refuse_equal_cells(digests)
    starts, runs = [], []
    for seed in seeds:
        place = Place(out / "starts" / stages_digest / f"seed{seed}", seed)
        start = _start_job(setup, place)
        starts.append(start)
        for cell in table.cells:
            folder = out / "cells" / f"{templates[cell.name].method}-{digests[cell.name]}" / f"seed{seed}"
            runs.append(_planned_run(table, setup, base, cell, place, folder, start))
    return Plan(starts, runs)


def refuse_stale(plan: Plan) -> None:
    """Raises ConfigError for a finished run with other settings than today's: a default that changed since."""
    for run in plan.runs:
        found = run.folder / "config.yaml"
        if run.job.steps[0].output.exists() and _compared(load_config(found)) != _compared(run.config):
            raise ConfigError(
                f"a finished run of cell {run.cell.name!r} was trained under other defaults than today's",
                got=found,
                remedy="remove its folder to train it again, or pass another --out",
            )


@dataclass(frozen=True)
class Place:
    """What `{start}` and `{seed}` stand for."""

    start: Path
    seed: int

    def fill(self, text: str) -> str:
        """`text` with both put in; other braces stay (prompt templates have their own)."""
        return text.replace("{start}", str(self.start)).replace("{seed}", str(self.seed))

    def fill_in(self, value: Any) -> Any:
        """The same for a setting's value where it is a text."""
        return self.fill(value) if isinstance(value, str) else value


def cell_settings(table: Table, setup: Setup, cell: Cell) -> dict[str, Any]:
    """What a cell changes of the base recipe; later ones win: setup, table, cell."""
    return {**setup.settings, **table.settings, **cell.settings}


def readable(command: Sequence[str]) -> str:
    """The command as a person would type it in the repository."""
    return shlex.join("python" if part == sys.executable else part.removeprefix(f"{REPOSITORY}/") for part in command)


def _template(table: Table, setup: Setup, base: Path, cell: Cell) -> RunConfig:
    """The cell's settings before `{start}` and `{seed}` are filled in: the same for every seed."""
    if not base.is_file():
        raise ConfigError("the setup's base recipe does not exist", got=base)
    values = yaml.safe_load(base.read_text(encoding="utf-8"))
    overrides = [*_override_texts(cell_settings(table, setup, cell)), "name=cell", "output_dir=runs", "seed=0"]
    return parse_config(apply_overrides(values, overrides), source=f"cell {cell.name!r}")


def _override_texts(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={_as_yaml(value)}" for name, value in settings.items()]


def _as_yaml(value: Any) -> str:
    """On one line, and bare where a text reads back as itself."""
    is_bare = isinstance(value, str) and BARE.fullmatch(value) is not None and yaml.safe_load(value) == value
    return value if is_bare else json.dumps(value)


def _start_job(setup: Setup, place: Place) -> Job:
    steps = tuple(
        Step(stage.title, _command(place.fill(stage.command)), Path(place.fill(stage.output))) for stage in setup.stages
    )
    return Job(f"start of seed {place.seed}", place.start, steps)


def _command(text: str) -> tuple[str, ...]:
    words = [str(REPOSITORY / word) if word.startswith(REPOSITORY_FOLDERS) else word for word in shlex.split(text)]
    return tuple(sys.executable if word == "python" else word for word in words)


def _planned_run(
    table: Table, setup: Setup, base: Path, cell: Cell, place: Place, folder: Path, start: Job
) -> PlannedRun:
    own = {"seed": place.seed, "output_dir": str(folder.parent), "name": folder.name}
    settings = {name: place.fill_in(value) for name, value in cell_settings(table, setup, cell).items()} | own
    overrides = _override_texts(settings)
    config = load_config(base, overrides)
    checkpoint = folder / "checkpoints" / f"step_{config.training.steps:08d}"
    flags = [part for text in overrides for part in ("--set", text)]
    answers = {evaluation.name: _answers_file(folder, evaluation) for evaluation in table.evaluations}
    steps = [Step("train", (*VERB, "train", str(base), *flags), checkpoint)]
    for evaluation in table.evaluations:
        arguments = ["--data", place.fill(evaluation.data), "--out", str(answers[evaluation.name])]
        command = (*VERB, "evaluate", str(checkpoint), *arguments, *shlex.split(evaluation.arguments))
        steps.append(Step(f"evaluate on {evaluation.name}", command, answers[evaluation.name]))
    job = Job(f"{cell.name}, seed {place.seed}", folder, tuple(steps), after=start)
    return PlannedRun(cell, place.seed, config, folder, job, answers)


def _answers_file(folder: Path, evaluation: Evaluation) -> Path:
    """Two tables may call different questions by one name."""
    return beside(folder, f".answers-{_digest([evaluation.data, evaluation.arguments])}.jsonl")


def _check_same_data(table: Table, templates: dict[str, RunConfig]) -> None:
    """Same examples, equally many, in the same order: a function of the data, the prompts a step and the seed."""
    for cell in table.cells:
        other = reference(table, cell)
        if other is None or cell.changes_data:
            continue
        expected, got = _data_seen(templates[other]), _data_seen(templates[cell.name])
        changed = [f"{name}={got[name]}" for name in got if got[name] != expected[name]]
        if changed:
            raise ConfigError(
                f"cell {cell.name!r} sees other training data than cell {other!r}, which it is compared with",
                got=", ".join(changed),
                expected=", ".join(f"{name}={expected[name]}" for name in got if got[name] != expected[name]),
                remedy="give every cell the same data and number of examples, or say `changes_data: true` in the cell",
            )


def _data_seen(config: RunConfig) -> dict[str, Any]:
    data = {f"data.{name}": value for name, value in config.data.model_dump().items()}
    # Supervised training draws no rollouts, and so no fresh prompts for them.
    extra_rounds = 0 if config.method == "sft" else config.rollout.extra_rounds
    return data | {
        "training.prompts_per_step": config.training.prompts_per_step,
        "training.steps": config.training.steps,
        "rollout.extra_rounds": extra_rounds,
    }


def _refuse_equal_cells(digests: dict[str, str]) -> None:
    by_digest: dict[str, str] = {}
    for name, digest in digests.items():
        if digest in by_digest:
            raise ConfigError("two cells of a table have the same settings", got=f"{by_digest[digest]!r} and {name!r}")
        by_digest[digest] = name


def _compared(config: RunConfig) -> dict[str, Any]:
    # The layout alters no number beyond rounding, and a run may have gone on under another one.
    return config.model_dump(exclude={"parallel"})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
