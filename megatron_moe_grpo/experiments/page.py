"""A table's results as Markdown and as JSON, every number computed from the runs; nothing is written by hand."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from megatron_moe_grpo.experiments.plan import readable
from megatron_moe_grpo.experiments.results import SAME_TASK, CellResult, Estimate, RunResult
from megatron_moe_grpo.experiments.table_file import Cell, Table, reference

MISSING = "-"


def markdown_page(table: Table, results: Sequence[CellResult], shared: dict[str, Any], facts: dict[str, Any]) -> str:
    """The page: accuracy with the paper's row beside it, further questions, cost, the paper's table, provenance.

    Args:
        shared: what every cell changes of the base recipe.
        facts: `command`, `date`, `versions`, `cpu_cores`, `start_cpu_s`.
    """
    parts = [
        f"# {table.title}",
        "Written by the command below; do not edit.",
        f"```bash\n{facts['command']}\n```",
        *_accuracy_section(table, results, SAME_TASK),
        *(part for evaluation in table.evaluations for part in _accuracy_section(table, results, evaluation.name)),
        *_notes(table, results),
        "## Cost of one run",
        _table(("cell", "CPU s", "wall s", "steps' s", "optimizer steps", "prompts", "rollouts"), map(_cost, results)),
        "Mean over seeds, start-up and the evaluations inside training included (`steps' s`: without them).",
        *_paper_section(table),
        "## Runs",
        *_provenance(results, shared, facts),
    ]
    return "\n\n".join(parts) + "\n"


def json_page(
    table: Table, results: Sequence[CellResult], shared: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "title": table.title,
        **facts,
        "settings": shared,
        "paper": None if table.paper is None else table.paper.model_dump(),
        "cells": [
            {
                "name": result.cell.name,
                "settings": result.cell.settings,
                "paper": result.cell.paper,
                "note": result.cell.note,
                "compared_with": reference(table, result.cell),
                "evaluations": {
                    name: {
                        "accuracy": _plain(_accuracy(result, name)),
                        "difference": _plain(_difference(table, results, result, name)),
                    }
                    for name in _evaluation_names(table)
                },
                "runs": [asdict(run) | {"command": readable(run.command)} for run in result.runs],
            }
            for result in results
        ],
    }


def verdict(ours: Estimate, papers: float) -> str:
    """Whether our difference has the sign of the paper's; a difference within chance says nothing."""
    interval = ours.interval
    if interval is None:
        return "one seed"
    if interval.low <= 0 <= interval.high:
        return "within chance"
    return "as in the paper" if (ours.mean > 0) == (papers > 0) else "against the paper"


def _evaluation_names(table: Table) -> list[str]:
    return [SAME_TASK, *(evaluation.name for evaluation in table.evaluations)]


def _accuracy(result: CellResult, name: str) -> Estimate | None:
    return result.estimate(lambda run: run.accuracy[name])


def _difference(table: Table, results: Sequence[CellResult], result: CellResult, name: str) -> Estimate | None:
    other = reference(table, result.cell)
    found = {one.cell.name: one for one in results}
    return None if other is None else result.difference(found[other], name)


def _accuracy_section(table: Table, results: Sequence[CellResult], name: str) -> list[str]:
    """Our accuracies on one set of questions, with the paper's column for it."""
    is_same_task = name == SAME_TASK
    paper_column = _paper_column(table, name)
    columns = ["cell", "accuracy", f"difference to {_references(table)}", *_seed_columns(results)]
    if is_same_task:
        columns += ["before training", "blank images"]
    if paper_column is not None:
        columns += [f"paper, {paper_column}", "paper's difference", "signs"]
    rows = []
    for result in results:
        difference = _difference(table, results, result, name)
        row = [result.cell.name, _estimate(_accuracy(result, name)), _estimate(difference, is_signed=True)]
        row += _by_seed(result, results, name)
        if is_same_task:
            row += [_mean(result, lambda run: run.before), _mean(result, lambda run: run.blank)]
        if paper_column is not None:
            row += _paper_cells(table, result.cell, paper_column, difference)
        rows.append(row)
    num_questions = sorted({run.num_questions[name] for result in results for run in result.runs})
    questions = " or ".join(f"{number:,}" for number in num_questions) or "no run yet"
    legend = "Share of right answers, mean over seeds with 95 % t interval; differences are taken seed by seed."
    return [f"## Accuracy: {name}", f"{legend} Questions: {questions}.", _table(columns, rows)]


def _references(table: Table) -> str:
    names = {reference(table, cell) for cell in table.cells} - {None}
    return f"*{names.pop()}*" if len(names) == 1 else "the cell named below" if names else "none"


def _paper_column(table: Table, name: str) -> str | None:
    if table.paper is None or name == SAME_TASK:
        return None if table.paper is None else table.paper.beside
    return name if name in table.paper.columns else None


def _paper_cells(table: Table, cell: Cell, column: str, difference: Estimate | None) -> list[str]:
    index = table.paper.columns.index(column)
    papers = {one.name: one.paper[index] if one.paper else None for one in table.cells}
    other, own = reference(table, cell), papers[cell.name]
    if own is None:
        return [MISSING] * 3
    if other is None or papers[other] is None:
        return [f"{own:.1f}", MISSING, MISSING]
    papers_difference = own - papers[other]
    word = MISSING if difference is None else verdict(difference, papers_difference)
    return [f"{own:.1f}", f"{papers_difference:+.1f}", word]


def _notes(table: Table, results: Sequence[CellResult]) -> list[str]:
    notes = [f"* *{cell.name}*: {cell.note}" for cell in table.cells if cell.note is not None]
    others = {cell.name: reference(table, cell) for cell in table.cells}
    if len(set(others.values()) - {None}) > 1:
        notes += [f"* *{name}* is compared with *{other}*." for name, other in others.items() if other is not None]
    notes += [
        f"* *{cell.name}* sees other training data than *{others[cell.name]}*."
        for cell in table.cells
        if cell.changes_data
    ]
    most = max(len(result.runs) for result in results)
    notes += [
        f"* *{result.cell.name}*: {len(result.runs)} runs finished." for result in results if len(result.runs) < most
    ]
    return ["\n".join(notes)] if notes else []


def _cost(result: CellResult) -> list[str]:
    values = (
        _mean(result, lambda run: run.cost.cpu_s, "{:,.0f}"),
        _mean(result, lambda run: run.cost.wall_s, "{:,.0f}"),
        _mean(result, lambda run: run.cost.step_s, "{:,.0f}"),
        _mean(result, lambda run: run.cost.optimizer_steps, "{:,.0f}"),
        _mean(result, lambda run: run.cost.prompts, "{:,.0f}"),
        _mean(result, lambda run: run.cost.rollouts, "{:,.0f}"),
    )
    return [result.cell.name, *values]


def _paper_section(table: Table) -> list[str]:
    if table.paper is None:
        return []
    rows = [[cell.name, *(f"{number:g}" for number in cell.paper)] for cell in table.cells if cell.paper]
    words = "Copied from the paper. Its scale is another one than ours: compare signs and sizes of differences at most."
    return [f"## {table.paper.source}", f"{table.paper.setting}. {words}", _table(["cell", *table.paper.columns], rows)]


def _provenance(results: Sequence[CellResult], shared: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    commits = sorted({commit for result in results for run in result.runs for commit in run.commits})
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    commands = [readable(result.runs[0].command) for result in results if result.runs]
    return [
        f"{facts['date']}; code that trained the runs: {'; '.join(commits) or 'none'}; {versions}; "
        f"{facts['cpu_cores']} CPU cores, one process a run. The start of one seed took {facts['start_cpu_s']:,.0f} "
        f"CPU s. Every cell changes {_settings(shared)} of the base recipe, and besides:",
        _table(("cell", "settings"), [[result.cell.name, _settings(result.cell.settings)] for result in results]),
        "One run of each cell, as a command:",
        "```bash\n" + "\n".join(commands) + "\n```",
    ]


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in settings.items()) or "nothing"


def _seed_columns(results: Sequence[CellResult]) -> list[str]:
    return [f"seed {seed}" for seed in _seeds(results)]


def _by_seed(result: CellResult, results: Sequence[CellResult], name: str) -> list[str]:
    values = {run.seed: f"{run.accuracy[name]:.3f}" for run in result.runs}
    return [values.get(seed, MISSING) for seed in _seeds(results)]


def _seeds(results: Sequence[CellResult]) -> list[int]:
    return sorted({run.seed for result in results for run in result.runs})


def _mean(result: CellResult, value: Callable[[RunResult], float | None], form: str = "{:.3f}") -> str:
    known: list[RunResult] = [run for run in result.runs if value(run) is not None]
    return form.format(sum(value(run) for run in known) / len(known)) if known else MISSING


def _estimate(estimate: Estimate | None, is_signed: bool = False) -> str:
    if estimate is None:
        return MISSING
    form = "{:+.3f}" if is_signed else "{:.3f}"
    interval = estimate.interval
    bounds = "" if interval is None else f" [{form.format(interval.low)}, {form.format(interval.high)}]"
    return form.format(estimate.mean) + bounds


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    interval = estimate.interval
    bounds = {} if interval is None else {"low": interval.low, "high": interval.high}
    return {"mean": estimate.mean, **bounds, "by_seed": estimate.by_seed}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
