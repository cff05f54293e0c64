"""Numbers of runs and sums over seeds, against numbers worked by hand."""

from pathlib import Path

import pytest
from finished_runs import attempt, finish, write_lines
from table_files import write_table

from megatron_moe_grpo.experiments.jobs import beside
from megatron_moe_grpo.experiments.plan import Plan, make_plan
from megatron_moe_grpo.experiments.results import SAME_TASK, CellResult, mean_start_cpu_s, read_cells, read_run
from megatron_moe_grpo.experiments.table_file import Table, load_table

NOISY = [{"name": "noisy", "data": "noisy.jsonl"}]


def planned(folder: Path, **changes: object) -> tuple[Table, Plan]:
    table, setup, base = load_table(write_table(folder, seeds=[0, 1, 2], **changes))
    return table, make_plan(table, setup, base, table.seeds, folder / "out")


def finish_all(folder: Path, both: list[float], token: list[float]) -> list[CellResult]:
    table, plan = planned(folder)
    for run in plan.runs:
        accuracies = both if run.cell.name == "both" else token
        if run.seed < len(accuracies):
            finish(run, accuracies[run.seed])
    return read_cells(table, plan.runs)


def test_read_run_takes_every_number_from_its_file(tmp_path: Path) -> None:
    _, plan = planned(tmp_path, evaluations=NOISY)
    finish(plan.runs[0], 0.7, {"noisy": [True, False, True, True]})
    found = read_run(plan.runs[0])
    assert found.accuracy == {SAME_TASK: 0.7, "noisy": 0.75}
    assert found.num_questions == {SAME_TASK: 1000, "noisy": 4}
    assert (found.before, found.blank) == (0.25, 0.26)
    # Both attempts of the training, not the evaluation after it.
    assert (found.cost.cpu_s, found.cost.wall_s, found.cost.step_s) == (20, 30, 9)
    # Three steps of four prompts, eight rollouts each.
    assert (found.cost.optimizer_steps, found.cost.prompts, found.cost.rollouts) == (3, 12, 96)
    assert found.commits == ("aaa", "bbb")


def test_read_run_counts_several_updates_and_no_rollouts_of_supervised_training(tmp_path: Path) -> None:
    cells = [
        {"name": "a", "settings": {"training.updates_per_rollout": 2}},
        {"name": "b", "settings": {"method": "sft"}},
    ]
    _, plan = planned(tmp_path, cells=cells)
    for run in plan.runs[:2]:
        finish(run, 0.5)
    several, supervised = (read_run(run).cost for run in plan.runs[:2])
    assert (several.optimizer_steps, several.rollouts) == (6, 96)
    assert (supervised.optimizer_steps, supervised.prompts, supervised.rollouts) == (3, 12, 0)


def test_read_run_counts_the_prompts_that_dynamic_sampling_drew(tmp_path: Path) -> None:
    _, plan = planned(tmp_path)
    finish(plan.runs[0], 0.5, prompts_drawn=6.0)
    cost = read_run(plan.runs[0]).cost
    assert (cost.prompts, cost.rollouts) == (18, 144)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    both, token = finish_all(tmp_path, [0.80, 0.60, 0.40], [0.70, 0.48, 0.32])
    accuracy = both.estimate(lambda run: run.accuracy[SAME_TASK])
    # Mean 0.6, s = 0.2, t(0.975, 2) = 4.302653: half-width 4.302653 * 0.2 / sqrt(3) = 0.496828.
    assert accuracy.mean == pytest.approx(0.6)
    assert accuracy.interval.low == pytest.approx(0.6 - 0.496828, abs=1e-5)
    difference = token.difference(both, SAME_TASK)
    # -0.10, -0.12, -0.08: mean -0.1, s = 0.02, half-width 0.0496828: seeds differ by far more than cells do.
    assert difference.by_seed == pytest.approx({0: -0.10, 1: -0.12, 2: -0.08})
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.149683, -0.050317), abs=1e-5)


def test_differences_need_both_runs_of_a_seed(tmp_path: Path) -> None:
    both, token = finish_all(tmp_path, [0.8], [0.7, 0.5])
    assert token.difference(both, SAME_TASK).by_seed == pytest.approx({0: -0.1})
    # One seed has no interval.
    assert token.difference(both, SAME_TASK).interval is None


def test_held_out_questions_of_another_task_have_no_difference(tmp_path: Path) -> None:
    other = {"data.train": "x.jsonl", "data.evaluation": "x.jsonl"}
    cells = [{"name": "a"}, {"name": "b", "settings": other, "changes_data": True}]
    table, plan = planned(tmp_path, cells=cells, evaluations=NOISY)
    for run in plan.runs:
        finish(run, 0.5, {"noisy": [True, run.cell.name == "a"]})
    a, b = read_cells(table, plan.runs)
    assert b.difference(a, SAME_TASK) is None
    # The table's own questions are the same for all.
    assert b.difference(a, "noisy").mean == pytest.approx(-0.5)


def test_read_cells_leaves_out_what_is_not_finished(tmp_path: Path) -> None:
    both, token = finish_all(tmp_path, [0.8, 0.6], [])
    assert [run.seed for run in both.runs] == [0, 1]
    assert token.runs == ()
    assert token.estimate(lambda run: run.before) is None
    assert token.difference(both, SAME_TASK) is None


def test_mean_start_cpu_s_is_over_seeds(tmp_path: Path) -> None:
    _, plan = planned(tmp_path)
    for start, num_attempts in zip(plan.starts, (1, 2, 3), strict=True):
        write_lines(beside(start.folder, ".attempts.jsonl"), [attempt("the data", 0, "aaa")] * num_attempts)
    assert mean_start_cpu_s(plan.starts) == 20
