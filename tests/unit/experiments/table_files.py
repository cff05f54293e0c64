"""Table files of the tests: two cells on a recipe that needs no data to be planned."""

from pathlib import Path
from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "name": "recipe",
    "method": "moe_grpo",
    "model": {"checkpoint": "absent"},
    "data": {"train": "train.jsonl"},
    "training": {"steps": 3, "prompts_per_step": 4},
}
SETUP: dict[str, Any] = {
    "base": "recipe.yaml",
    "settings": {"model.checkpoint": "{start}/model", "data.train": "{start}/train.jsonl"},
    "stages": [
        {
            "title": "the data",
            "command": "python tools/make_digit_grids.py --out {start}/data",
            "output": "{start}/data",
        }
    ],
}
TABLE: dict[str, Any] = {
    "title": "Two cells",
    "setup": "setup.yaml",
    "seeds": [0, 1],
    "cells": [{"name": "both"}, {"name": "token", "settings": {"losses.gate_coefficient": 0}}],
}


def write_table(folder: Path, name: str = "table", setup_values: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Recipe, setup and table as files; `changes` replace entries of the table."""
    write(folder / "recipe.yaml", RECIPE)
    write(folder / "setup.yaml", SETUP if setup_values is None else setup_values)
    return write(folder / f"{name}.yaml", TABLE | changes)


def write(path: Path, values: dict[str, Any]) -> Path:
    """`values` as YAML."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
