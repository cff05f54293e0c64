"""Text-only rows, several images a prompt, and prompts of different lengths train together, whatever a rank gets."""

from pathlib import Path
from typing import Any

import pytest
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, write_recipe, write_rows

OPTIONS = ["A. 1", "B. 2", "C. 3", "D. 4"]
METHODS = ("sft", "moe_grpo")
MAX_GAP = 1e-5
"""Measured between one process and two: 2e-7 (losses), 1e-6 (log-prob gaps)."""


def text_row(name: str) -> dict[str, Any]:
    return {"id": name, "problem": "Which?", "options": OPTIONS, "solution": "A", "problem_type": "text"}


def image_row(name: str, num_images: int) -> dict[str, Any]:
    images = [f"images/train/{index:05d}.png" for index in range(num_images)]
    return text_row(name) | {"images": images, "problem": "How many pictures do you see?", "problem_type": "images"}


def train(start: TinyStart, method: str, rows: list[dict[str, Any]], folder: Path, num_ranks: int = 1) -> list[dict]:
    """Three steps of two prompts, held-out rows the same as the training rows; returns the metrics."""
    name = f"{method}_{num_ranks}"
    path = str(write_rows(folder / "rows.jsonl", rows))
    values = recipe(start, method, folder, name) | {
        "data": {"train": path, "evaluation": path, "image_root": str(start.rows), "max_prompt_tokens": 128},
        "training": {"steps": 3, "prompts_per_step": 2, "micro_batch_prompts": 1, "save_every": 3},
        "parallel": {"expert": num_ranks},
    }
    expect_success(run_command(["train", write_recipe(values, folder / f"{name}.yaml")], folder / f"log_{name}",
                               num_ranks))  # fmt: skip
    return read_lines(folder / name / "metrics.jsonl")


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_any_image_train(method: str, start: TinyStart, tmp_path: Path) -> None:
    lines = train(start, method, [text_row("one"), text_row("two")], tmp_path)
    assert lines[-1]["step"] == 3 and lines[-1]["eval_num_examples"] == 2
    assert all(line["grad_norm"] > 0 for line in lines[1:])


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_without_images_waits_for_nobody(method: str, start: TinyStart, tmp_path: Path) -> None:
    """Each step has one text-only row and one with three images: of two ranks one always sees text only."""
    rows = [text_row("text"), image_row("three", 3)]
    both = train(start, method, rows, tmp_path, num_ranks=2)
    alone = train(start, method, rows, tmp_path)
    assert [line.keys() for line in both] == [line.keys() for line in alone]
    for got, expected in zip(both, alone, strict=True):
        for name, value in expected.items():
            if isinstance(value, float):
                assert got[name] == pytest.approx(value, rel=MAX_GAP, abs=MAX_GAP), f"{name} of step {got['step']}"


def test_the_most_images_a_row_may_have_train_beside_text(start: TinyStart, tmp_path: Path) -> None:
    lines = train(start, "moe_grpo", [image_row("eight", 8), text_row("text")], tmp_path)
    assert lines[-1]["step"] == 3 and lines[-1]["eval_num_examples"] == 2
