"""The recipes of examples/paper/, dry: real sizes without weights, a tiny tokenizer, pictures of real size."""

import json
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ROOT, Finished, run_command
from PIL import Image
from tiny_training import expect_success

from megatron_moe_grpo.benchmark.real_configs import internvl_3_5_1b_upcycled, qwen2_vl_2b
from megatron_moe_grpo.models.internvl.tiny import TinySizes as TinyInternVL
from megatron_moe_grpo.models.internvl.tiny import build_tiny_internvl
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes as TinyQwen2VL
from megatron_moe_grpo.models.qwen2_vl.tiny import build_tiny_qwen2_vl

PAPER = ROOT / "examples" / "paper"
TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
NUMBERS = {"id": "a", "image": "a.png", "problem": "How many?", "solution": "3", "problem_type": "counting"}
CHOICE = {"id": "a", "image": "a.png", "problem": "How many?", "options": ["2", "3"], "solution": "B"}


def write_start(folder: Path, family: str) -> Path:
    """What `import` would leave of the real model, but for its weights."""
    assets = folder / "assets"
    if family == "internvl":
        build_tiny_internvl(assets, TinyInternVL(), seed=0)
        real, changes = internvl_3_5_1b_upcycled(), {"size": {"height": 448, "width": 448}, "crop_to_patches": True}
        rewrite(assets / "processor_config.json", {"image_seq_length": 256})
    else:
        build_tiny_qwen2_vl(assets, TinyQwen2VL(), seed=0)
        real = qwen2_vl_2b()
        changes = {"patch_size": 14, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}}
    rewrite(assets / "preprocessor_config.json", changes)
    tiny = json.loads((assets / "config.json").read_text(encoding="utf-8"))
    ids = {name: tiny[name] for name in TOKEN_IDS if name in tiny}
    (assets / "config.json").write_text(json.dumps(real | ids), encoding="utf-8")
    return folder


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def dry_run(folder: Path, recipe: str, row: dict[str, Any], *overrides: str) -> Finished:
    family = "internvl" if "internvl" in recipe else "qwen2_vl"
    start = write_start(folder / "start", family)
    Image.new("RGB", (448, 448), "white").save(folder / "a.png")
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    settings = [f"model.checkpoint={start}", f"data.train={rows}", f"data.evaluation={rows}", *overrides]
    arguments = [text for setting in settings for text in ("--set", setting)]
    command = ["train", PAPER / recipe, "--dry-run", "--world-size", 4, *arguments]
    (finished,) = run_command(command, folder / "log")
    return finished


@pytest.mark.parametrize(
    "recipe, row, expected",
    [
        (
            "moe_grpo_internvl3_5_1b.yaml",
            CHOICE,
            # Four prompts a step and eight rollouts each; 2.9 B and 1.3 B as the paper counts them.
            ["2.91 B / 1.33 B", "25,000 steps of 4 prompts: 100,000 prompts, 800,000 rollouts", "no reference model"],
        ),
        (
            "grpo_d_qwen2_vl_2b_counting.yaml",
            NUMBERS,
            ["2.21 B / 2.21 B", "dynamic: 0.07 at the first step, 0.04 at step 300, 0.09991 at the last"],
        ),
        (
            "grpo_d_qwen2_vl_2b_geometry.yaml",
            {**NUMBERS, "solution": "40°", "problem_type": "geometry"},
            ["2.21 B / 2.21 B", "dynamic: 0.01 at the first step, 0 at step 300, 0.01997 at the last"],
        ),
    ],
)
def test_dry_run_of_a_paper_recipe(recipe: str, row: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    finished = dry_run(tmp_path, recipe, row)
    expect_success([finished])
    assert [words for words in expected if words not in finished.output] == []
    assert "1 rows, longest prompt" in finished.output


def test_dry_run_refuses_what_training_would_refuse(tmp_path: Path) -> None:
    finished = dry_run(tmp_path, "moe_grpo_internvl3_5_1b.yaml", CHOICE, "parallel.expert=3")
    assert finished.exit_code == 2
    assert "parallel.expert one of 1, 2, 4, 8" in finished.output


def test_every_paper_recipe_is_run_dry_here() -> None:
    assert {path.name for path in PAPER.glob("*.yaml")} == {
        "moe_grpo_internvl3_5_1b.yaml", "grpo_d_qwen2_vl_2b_counting.yaml", "grpo_d_qwen2_vl_2b_geometry.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("pipeline", [1, 2])
def test_dry_run_with_frozen_parts(pipeline: int, tmp_path: Path) -> None:
    freeze = ["model.freeze=[vision_tower, projector, language_model]", f"parallel.pipeline={pipeline}"]
    expect_success([dry_run(tmp_path, "moe_grpo_internvl3_5_1b.yaml", CHOICE, *freeze, "parallel.expert=2")])


def test_dry_run_refuses_a_model_with_nothing_to_train(tmp_path: Path) -> None:
    freeze = "model.freeze=[vision_tower, projector, language_model, router]"
    finished = dry_run(tmp_path, "moe_grpo_internvl3_5_1b.yaml", CHOICE, freeze)
    assert finished.exit_code == 2
    assert "model.freeze leaves nothing to train" in finished.output
