"""What finished runs say, read back from their files, and the sums over seeds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.evaluation.accuracy import MeanInterval, mean_with_interval
from megatron_moe_grpo.experiments.jobs import Job, beside
from megatron_moe_grpo.experiments.plan import PlannedRun
from megatron_moe_grpo.experiments.table_file import Cell, Table

# The held-out rows of the recipe itself, answered at the end of training.
SAME_TASK = "held-out questions"


@dataclass(frozen=True)
class Cost:
    """What training took, over all its attempts; evaluations inside training are part of it."""

    cpu_s: float
    wall_s: float
    step_s: float
    """Wall seconds of the training steps alone."""
    optimizer_steps: int
    prompts: int
    """Fresh prompts of dynamic sampling included."""
    rollouts: int


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    seed: int
    held_out: str
    """File of the held-out questions."""
    before: float
    """Accuracy of the start on the held-out questions."""
    blank: float | None
    """Accuracy after training with blank images."""
    accuracy: dict[str, float]
    """After training: the held-out questions, then each further evaluation."""
    num_questions: dict[str, int]
    cost: Cost
    commits: tuple[str, ...]
    """Of the code that trained it, attempt after attempt."""
    command: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """A number by seed, with mean and, from two seeds on, 95 % t interval."""

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def interval(self) -> MeanInterval | None:
        return mean_with_interval(list(self.by_seed.values())) if len(self.by_seed) > 1 else None


@dataclass(frozen=True)
class CellResult:
    """A cell's finished runs."""

    cell: Cell
    runs: tuple[RunResult, ...]

    def estimate(self, value: Callable[[RunResult], float]) -> Estimate | None:
        """`value` of every run; None without runs."""
        return Estimate({run.seed: value(run) for run in self.runs}) if self.runs else None

    def difference(self, other: "CellResult", evaluation: str) -> Estimate | None:
        """Accuracy minus that of `other`, seed by seed; None where no two of their runs answered the same questions.

        Both runs of a pair had the same start, so what a seed brings to both drops out.
        """
        theirs = {_question_set(run, evaluation): run.accuracy[evaluation] for run in other.runs}
        pairs = {
            run.seed: run.accuracy[evaluation] - theirs[_question_set(run, evaluation)]
            for run in self.runs
            if _question_set(run, evaluation) in theirs
        }
        return Estimate(pairs) if pairs else None


def read_cells(table: Table, runs: Sequence[PlannedRun]) -> list[CellResult]:
    """Every cell of the table in its order; a run that is not finished is left out."""
    found = {cell.name: [] for cell in table.cells}
    for run in runs:
        if run.job.next_step is None:
            found[run.cell.name].append(read_run(run))
    return [CellResult(cell, tuple(found[cell.name])) for cell in table.cells]


def read_run(run: PlannedRun) -> RunResult:
    """A finished run's numbers.  The last checkpoint is whole, so metrics.jsonl and the answers are."""
    metrics = _lines(run.folder / "metrics.jsonl")
    first, last = metrics[0], metrics[-1]
    answers = {name: [line["is_correct"] for line in _lines(path)] for name, path in run.answers.items()}
    attempts = [line for line in _lines(beside(run.folder, ".attempts.jsonl")) if line["step"] == "train"]
    (training,) = (step for step in run.job.steps if step.name == "train")
    return RunResult(
        seed=run.seed,
        held_out=str(run.config.data.evaluation),
        before=first["eval_accuracy"],
        blank=last.get("eval_blank_accuracy"),
        accuracy={SAME_TASK: last["eval_accuracy"]}
        | {name: sum(is_correct) / len(is_correct) for name, is_correct in answers.items()},
        num_questions={SAME_TASK: last["eval_num_examples"]} | {name: len(all_) for name, all_ in answers.items()},
        cost=_cost(run, metrics, attempts),
        commits=tuple(dict.fromkeys(line["commit"] for line in attempts)),
        command=training.command,
    )


def mean_start_cpu_s(starts: Sequence[Job]) -> float:
    """CPU seconds that one seed's start took."""
    attempts = [line for start in starts for line in _lines(beside(start.folder, ".attempts.jsonl"))]
    return sum(line["cpu_s"] for line in attempts) / len(starts)


def _question_set(run: RunResult, evaluation: str) -> tuple[int, str]:
    """Held-out questions are a cell's own, further evaluations are the table's."""
    return run.seed, run.held_out if evaluation == SAME_TASK else evaluation


def _cost(run: PlannedRun, metrics: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> Cost:
    config, training = run.config, run.config.training
    has_rollouts = config.method != "sft"
    drawn = [line.get("prompts_drawn", training.prompts_per_step) for line in metrics if line["step"] > 0]
    timing = _lines(run.folder / "timing.jsonl")
    return Cost(
        cpu_s=sum(line["cpu_s"] for line in attempts),
        wall_s=sum(line["wall_s"] for line in attempts),
        step_s=sum(seconds for line in timing for name, seconds in line.items() if name.endswith("_s")),
        optimizer_steps=len(drawn) * (training.updates_per_rollout if has_rollouts else 1),
        prompts=round(sum(drawn)),
        rollouts=round(sum(drawn)) * config.rollout.group_size if has_rollouts else 0,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
