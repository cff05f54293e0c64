"""A table of two cells and one step, for real: trained, evaluated, written; then nothing is left to do."""

import json
import os
from pathlib import Path

import pytest
import yaml
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, recipe, write_recipe

PAPER = {"source": "A paper, Table 1", "setting": "percent right", "columns": ["Avg."], "beside": "Avg."}


def write_table(start: TinyStart, folder: Path) -> Path:
    values = recipe(start, "moe_grpo", folder)
    values["training"] |= {"steps": 1, "evaluate_every": 0}
    values["rollout"]["extra_rounds"], values["optimizer"]["warmup_steps"] = 0, 0
    write_recipe(values, folder / "recipe.yaml")
    stage = {"title": "a folder", "command": "mkdir -p {start}/made", "output": "{start}/made"}
    setup = {"base": "recipe.yaml", "settings": {"logging.examples": 0}, "stages": [stage]}
    write_recipe(setup, folder / "setup.yaml")
    table = {
        "title": "Two cells",
        "setup": "setup.yaml",
        "paper": PAPER,
        "seeds": [0],
        "cells": [
            {"name": "both", "paper": [55.7]},
            {"name": "supervised", "settings": {"method": "sft", "routing.guidance": "none"}, "paper": [54.0]},
        ],
        "evaluations": [{"name": "again", "data": str(start.rows / "test.jsonl")}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def finished(start: TinyStart, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path, str]:
    """The command, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("experiment")
    table = write_table(start, folder)
    command = ["experiment", table, "--out", folder / "runs", "--results", folder / "results"]
    (done,) = run_command(command, folder / "log")
    expect_success([done])
    return command, folder, done.output


def test_every_cell_is_trained_and_evaluated(finished: tuple[list[object], Path, str]) -> None:
    _, folder, output = finished
    assert "[3/3]" in output and "failed" not in output
    values = json.loads((folder / "results" / "tiny.json").read_text(encoding="utf-8"))
    assert [cell["name"] for cell in values["cells"]] == ["both", "supervised"]
    for cell in values["cells"]:
        (run,) = cell["runs"]
        # Our evaluation during training and the verb's afterwards saw the same weights and questions.
        assert run["accuracy"]["again"] == run["accuracy"]["held-out questions"]
        assert run["cost"]["cpu_s"] > 1
        assert run["cost"]["prompts"] == 4
    assert [cell["runs"][0]["cost"]["rollouts"] for cell in values["cells"]] == [16, 0]
    # Both began with the same weights.
    assert len({cell["runs"][0]["before"] for cell in values["cells"]}) == 1


def test_the_page_has_a_row_a_cell(finished: tuple[list[object], Path, str]) -> None:
    text = (finished[1] / "results" / "tiny.md").read_text(encoding="utf-8")
    assert text.startswith("# Two cells\n") and "| supervised | " in text and "one seed" in text


def test_the_same_command_again_does_nothing(finished: tuple[list[object], Path, str]) -> None:
    command, folder, _ = finished
    checkpoints = sorted((folder / "runs").rglob("step_*"))
    times = [os.stat(path).st_mtime_ns for path in checkpoints]
    (done,) = run_command([*command, "--only", "both"], folder / "log_again")
    expect_success([done])
    assert "[1/1] both, seed 0: done before" in done.output
    assert [os.stat(path).st_mtime_ns for path in checkpoints] == times
    # The page keeps the cells that this command left out.
    assert "| supervised | " in (folder / "results" / "tiny.md").read_text(encoding="utf-8")
