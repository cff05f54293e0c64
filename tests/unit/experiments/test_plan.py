"""Equal cells are one run, unequal ones never are; and what a cell sees is what the others see."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from table_files import RECIPE, SETUP, write, write_table

from megatron_moe_grpo import __main__ as command_line
from megatron_moe_grpo.config import dump_config, load_config
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.experiments.jobs import Step
from megatron_moe_grpo.experiments.plan import Plan, PlannedRun, make_plan, readable, refuse_stale
from megatron_moe_grpo.experiments.table_file import load_table

TABLES = Path(__file__).resolve().parents[3] / "examples" / "tables"
OUT = Path("runs") / "tables"


def plan_of(path: Path, seeds: tuple[int, ...] = (0, 1), out: Path = OUT) -> Plan:
    table, setup, base = load_table(path)
    return make_plan(table, setup, base, seeds, out)


def folders(plan: Plan) -> dict[str, Path]:
    return {run.job.title: run.folder for run in plan.runs}


def parsed(step: Step) -> argparse.Namespace:
    """What the verb makes of the command; a flag that it does not know ends the test."""
    verb, *arguments = step.command[step.command.index("megatron_moe_grpo") + 1 :]
    parser = argparse.ArgumentParser(prog=verb)
    command_line.VERBS[verb][0](parser)
    return parser.parse_args(arguments)


def trained_config(run: PlannedRun) -> Any:
    arguments = parsed(run.job.steps[0])
    return load_config(arguments.config, arguments.overrides)


def test_make_plan_gives_commands_that_train_the_planned_settings(tmp_path: Path) -> None:
    plan = plan_of(
        write_table(tmp_path, settings={"reward.by_problem_type": {"where": "iou"}, "rollout.group_size": 4})
    )
    assert len(plan.runs) == 4
    for run in plan.runs:
        config = trained_config(run)
        assert config == run.config
        assert config.model.checkpoint == str(plan.starts[run.seed].folder / "model")
        assert (config.seed, config.rollout.group_size) == (run.seed, 4)
        assert Path(config.output_dir) / config.name == run.folder
        assert run.job.steps[0].output == run.folder / "checkpoints" / "step_00000003"
    assert [run.config.losses.gate_coefficient for run in plan.runs] == [1, 0, 1, 0]


def test_make_plan_evaluates_the_last_checkpoint(tmp_path: Path) -> None:
    evaluations = [{"name": "noisy", "data": "{start}/noisy.jsonl", "arguments": "--max-new-tokens 9"}]
    run = plan_of(write_table(tmp_path, evaluations=evaluations)).runs[0]
    train, evaluate = run.job.steps
    arguments = parsed(evaluate)
    assert arguments.model == str(train.output)
    assert arguments.data == run.job.after.folder / "noisy.jsonl"
    assert (arguments.out, arguments.max_new_tokens) == (run.answers["noisy"], 9)
    assert evaluate.output == run.answers["noisy"]


def test_equal_cells_share_a_folder_whatever_table_and_name(tmp_path: Path) -> None:
    first = folders(plan_of(write_table(tmp_path, "first")))
    other = write_table(tmp_path, "other", cells=[{"name": "x"}, {"name": "y", "settings": {"rollout.group_size": 4}}])
    second = folders(plan_of(other))
    assert second["x, seed 0"] == first["both, seed 0"]
    assert second["x, seed 0"] != second["x, seed 1"]
    assert second["y, seed 0"] not in first.values()


def test_a_default_that_is_spelled_out_is_the_same_cell(tmp_path: Path) -> None:
    spelled = {"name": "spelled", "settings": {"losses.token_coefficient": 1.0}}
    first = folders(plan_of(write_table(tmp_path, "first")))
    assert folders(plan_of(write_table(tmp_path, "b", cells=[spelled])))["spelled, seed 0"] == first["both, seed 0"]


def test_another_start_is_another_run(tmp_path: Path) -> None:
    first = plan_of(write_table(tmp_path))
    stage = SETUP["stages"][0] | {"command": "python tools/make_digit_grids.py --out {start}/data --scale 1"}
    second = plan_of(write_table(tmp_path, setup_values=SETUP | {"stages": [stage]}))
    assert first.starts[0].folder != second.starts[0].folder
    assert not set(folders(first).values()) & set(folders(second).values())


def test_make_plan_refuses_equal_cells(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same settings"):
        plan_of(write_table(tmp_path, cells=[{"name": "a"}, {"name": "b", "settings": {"rollout.group_size": 8}}]))


def test_make_plan_names_an_unknown_setting_and_its_cell(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'losses\.gate_coeficient' in cell 'b'[\s\S]*did you mean"):
        plan_of(write_table(tmp_path, cells=[{"name": "a"}, {"name": "b", "settings": {"losses.gate_coeficient": 0}}]))


@pytest.mark.parametrize(
    "settings",
    [{"training.steps": 4}, {"training.prompts_per_step": 8}, {"data.train": "x"}, {"rollout.extra_rounds": 1}],
)
def test_make_plan_refuses_other_data_unless_the_cell_says_so(settings: dict[str, Any], tmp_path: Path) -> None:
    cells = [{"name": "a"}, {"name": "b", "settings": settings}]
    with pytest.raises(ConfigError, match=f"cell 'b' sees other training data[\\s\\S]*{next(iter(settings))}"):
        plan_of(write_table(tmp_path, cells=cells))
    cells[1]["changes_data"] = True
    assert len(plan_of(write_table(tmp_path, cells=cells)).runs) == 4


def test_data_are_compared_among_cells_that_are_compared(tmp_path: Path) -> None:
    geometry = {"data.train": "geometry.jsonl"}
    cells = [
        {"name": "counting"},
        {"name": "geometry", "settings": geometry, "compare_with": "geometry"},
        {"name": "dynamic", "settings": geometry | {"rollout.group_size": 4}, "compare_with": "geometry"},
    ]
    assert len(plan_of(write_table(tmp_path, cells=cells)).runs) == 6
    cells[2]["settings"]["training.steps"] = 4
    with pytest.raises(ConfigError, match="than cell 'geometry', which it is compared with"):
        plan_of(write_table(tmp_path, cells=cells))


def test_jobs_leave_out_a_start_that_no_run_needs(tmp_path: Path) -> None:
    plan = plan_of(write_table(tmp_path), out=tmp_path / "out")
    table, _, _ = load_table(tmp_path / "table.yaml")
    for run in plan.runs:
        if run.seed == 0:
            run.job.steps[0].output.mkdir(parents=True)
    assert [job.title for job in plan.jobs(table.cells)] == [
        "start of seed 1", "both, seed 0", "token, seed 0", "both, seed 1", "token, seed 1",
    ]  # fmt: skip
    assert [job.title for job in plan.jobs(table.cells[1:])] == ["start of seed 1", "token, seed 0", "token, seed 1"]


def test_refuse_stale_names_a_run_of_other_defaults(tmp_path: Path) -> None:
    run = plan_of(write_table(tmp_path), out=tmp_path / "out").runs[0]
    run.job.steps[0].output.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    refuse_stale(plan_of(tmp_path / "table.yaml", out=tmp_path / "out"))
    # A default that was 0.3 when the run was trained.
    losses = run.config.losses.model_copy(update={"clip_epsilon": 0.3})
    (run.folder / "config.yaml").write_text(dump_config(run.config.model_copy(update={"losses": losses})), "utf-8")
    with pytest.raises(ConfigError, match="other defaults"):
        refuse_stale(plan_of(tmp_path / "table.yaml", out=tmp_path / "out"))


def test_readable_is_what_a_person_types(tmp_path: Path) -> None:
    start = plan_of(write_table(tmp_path)).starts[0]
    assert readable(start.steps[0].command) == f"python tools/make_digit_grids.py --out {start.folder}/data"


def test_make_plan_reads_the_recipe_of_the_setup(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    write(tmp_path / "recipe.yaml", RECIPE | {"routing": {"noise_std": 3.0}})
    assert plan_of(path).runs[0].config.routing.noise_std == 3.0


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_table_of_the_repository_is_planned(path: Path) -> None:
    plan = plan_of(path, seeds=(0,))
    for start in plan.starts:
        for step in start.steps:
            assert Path(step.command[1]).is_file() or parsed(step), step.command
    for run in plan.runs:
        assert trained_config(run) == run.config
        for step in run.job.steps[1:]:
            parsed(step)


def test_the_tables_of_the_first_paper_share_the_full_method() -> None:
    of_table = {name: set(folders(plan_of(TABLES / f"{name}.yaml")).values()) for name in ("m1", "m4", "m5", "m7")}
    # One full MoE-GRPO run a seed; m6 updates twice on each batch of rollouts, in all of its cells.
    assert len(set.intersection(*of_table.values())) == 2
