"""`plan` from recipe to tables: paper recipes without their weights, and a small run with its data."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import SETTINGS, write_small_run

from megatron_moe_grpo.commands import plan
from megatron_moe_grpo.errors import ConfigError, MoeGrpoError

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "examples" / "paper"
MOE, DENSE = PAPER / "moe_grpo_internvl3_5_1b.yaml", PAPER / "grpo_d_qwen2_vl_2b_counting.yaml"
LIMIT_S = 10


def run_plan(*options: object) -> None:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    plan.run(parser.parse_args([str(option) for option in options]))


def values_of(tmp_path: Path, *options: object) -> dict[str, Any]:
    run_plan(*options, "--json", tmp_path / "plan.json")
    return json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.parametrize(
    ("recipe", "model", "world"), [(MOE, "internvl3.5-1b-upcycled", 1024), (DENSE, "qwen2-vl-2b", 8192)]
)
def test_plan_of_a_paper_recipe(
    recipe: Path, model: str, world: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_s = time.process_time()
    prompts = f"training.prompts_per_step={world}"
    values = values_of(tmp_path, recipe, "--world", world, "--model-config", model, "--set", prompts)
    assert time.process_time() - start_s < LIMIT_S
    printed = capsys.readouterr().out
    for title in ("Memory (calculated)", "Time of a step (estimated)", "an estimate, not a measurement"):
        assert title in printed
    assert values["shown"]["layout"]["world_size"] == world
    times = [found["estimated_s"]["total_s"] for found in values["fitting"]]
    assert times == sorted(times)
    assert all(found["needed_bytes"] <= 80e9 for found in values["fitting"])
    assert sum(values["illegal"].values()) > 0


def test_plan_of_an_illegal_layout_says_why_and_shows_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "parallel.expert=3", "--set", "training.prompts_per_step=64", "--set", "parallel.pipeline=1"]
    values = values_of(tmp_path, MOE, "--world", 64, "--model-config", "internvl3.5-1b-upcycled", *options)
    assert "the experts cannot be divided" in values["refusal"]
    assert values["shown"] == values["fitting"][0]
    assert "The recipe's own layout is illegal" in capsys.readouterr().out


def test_plan_without_any_legal_layout_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    run_plan(MOE, "--world", 1024, "--model-config", "internvl3.5-1b-upcycled")
    printed = capsys.readouterr().out
    assert "No layout of so many GPUs is legal" in printed
    assert "raise training.prompts_per_step" in printed


def test_plan_reads_lengths_from_the_data(tmp_path: Path) -> None:
    small = write_small_run(tmp_path / "start")
    row = {"id": "a", "image": "picture_0.png", "problem": "How many?", "options": ["2", "3"], "solution": "B"}
    rows = tmp_path / "start" / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    recipe = SETTINGS | {"model": {"checkpoint": str(tmp_path / "start")}, "data": {"train": str(rows)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    workload = values_of(tmp_path, tmp_path / "recipe.yaml", "--world", 2)["workload"]
    # 32 x 32 pixels in patches of 4, four of them a token.
    assert workload["pictures"]["num_tokens"] == 16
    assert 16 < workload["prompt_tokens"] < 100
    assert str(rows) in workload["source"]
    assert small.planned.workload.pictures.num_tokens == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "h100"], "not in the table"),
        (["--world", "0"], "at least 1"),
        (["--assume", "speed=1"], "Unknown assumption"),
        (["--assume", "matmul_efficiency=fast"], "must be a number"),
        (["--assume", "matmul_efficiency=0"], "share of the peak"),
        (["--assume", "expert_imbalance=0.5"], "at least the mean"),
        (["--image-size", "448"], "two numbers"),
        (["--images", "40"], "longer than the prompt"),
        (["--model-config", "nowhere/config.json"], "no such folder"),
    ],
)
def test_plan_refuses_what_it_cannot_use(options: list[str], words: str) -> None:
    known = ["--world", "8", "--model-config", "internvl3.5-1b-upcycled", *options]
    with pytest.raises(MoeGrpoError, match=words):
        run_plan(MOE, *known)


def test_plan_needs_the_sizes_of_the_model() -> None:
    with pytest.raises(ConfigError, match="its sizes are not known"):
        run_plan(MOE, "--world", "8")
