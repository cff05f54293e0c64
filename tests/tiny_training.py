"""What a training run of seconds needs: a tiny upcycled InternVL that knows what an answer looks like, digit grids, and
recipes for both methods.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from forked_commands import Finished, run_command

from megatron_moe_grpo.data.digit_grid_files import write_digit_grids
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=16, vision_layers=1, vision_heads=2, hidden_size=32, layers=2,
    heads=4, kv_heads=2, head_dim=8, ffn_size=24, max_positions=128,
)  # fmt: skip
# Experts as different as unrelated ones and routers that prefer some: which expert is chosen matters from the start.
UPCYCLING = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
NUM_GRIDS, NUM_TEST = 12, 2
WARM_UP_STEPS = 12


@dataclass(frozen=True)
class TinyStart:
    """Folders that any run can start from; nothing writes to them."""

    dense: Path
    """Hugging Face folder."""
    moe: Path
    """Hugging Face folder, 8 experts top-2."""
    untrained: Path
    """Megatron checkpoint of `moe`."""
    warm: Path
    """The same after a little supervised training: it answers with letters, right ones and wrong ones."""
    rows: Path
    """train.jsonl, test.jsonl and their pictures."""


def other_rows() -> list[dict[str, Any]]:
    """Rows unlike the grids' one picture each: text only, and two pictures of which one is repeated elsewhere."""
    options = ["A. 1", "B. 2", "C. 3", "D. 4"]
    text_only = [
        {"id": f"text-{index}", "problem": f"What is {index} and 1?", "options": options, "solution": "ABCD"[index]}
        for index in range(3)
    ]
    two_images = [
        {
            "id": f"two-{index}", "images": [f"images/train/{index:05d}.png", f"images/train/{index + 1:05d}.png"],
            "problem": "<image> and <image>: how many pictures?", "options": options, "solution": "B",
        }
        for index in range(3)
    ]  # fmt: skip
    return text_only + two_images


@functools.cache
def tiny_start(folder: Path) -> TinyStart:
    """Made once a test session in `folder`, which must not exist."""
    start = TinyStart(
        dense=folder / "dense",
        moe=folder / "moe",
        untrained=folder / "untrained",
        warm=folder / "warm_up" / "checkpoints" / f"step_{WARM_UP_STEPS:08d}",
        rows=folder / "digits" / "clear",
    )
    folder.mkdir()
    build_tiny_internvl(start.dense, SIZES, seed=0)
    state, config = upcycle_state(read_hf_state(start.dense), read_hf_config(start.dense), UPCYCLING)
    write_hf_folder(start.moe, state, config, assets=start.dense)
    write_digit_grids(start.rows.parent, NUM_GRIDS, NUM_TEST, seed=0, cameras=("clear",), scale=1)
    write_rows(start.rows / "train.jsonl", [*read_lines(start.rows / "train.jsonl"), *other_rows()])
    expect_success(run_command(["import", start.moe, start.untrained], folder / "log_import"))
    values = recipe(start, "sft", folder, "warm_up") | {"model": {"checkpoint": str(start.untrained)}}
    values["training"] = {
        "steps": WARM_UP_STEPS, "prompts_per_step": 8, "micro_batch_prompts": 8, "save_every": WARM_UP_STEPS,
    }  # fmt: skip
    values["optimizer"] = {"learning_rate": 1e-2, "schedule": "constant"}
    expect_success(run_command(["train", write_recipe(values, folder / "warm_up.yaml")], folder / "log_warm_up"))
    return start


def recipe(start: TinyStart, method: str, output_dir: Path, name: str = "run") -> dict[str, Any]:
    """Six steps with everything on: evaluations, checkpoints, warm-up, several micro-batches, updates, all losses."""
    values: dict[str, Any] = {
        "name": name,
        "method": method,
        "output_dir": str(output_dir),
        "model": {"checkpoint": str(start.warm)},
        "data": {"train": str(start.rows / "train.jsonl"), "evaluation": str(start.rows / "test.jsonl")},
        "training": {
            "steps": 6, "prompts_per_step": 4, "micro_batch_prompts": 2, "evaluate_every": 3, "save_every": 2,
            "keep_checkpoints": 3,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3, "weight_decay": 0.01, "schedule": "linear"},
        "logging": {"wandb": "disabled", "examples": 2},
    }  # fmt: skip
    if method == "moe_grpo":
        values["rollout"] = {"group_size": 4, "token_temperature": 1.0, "extra_rounds": 1}
        values["training"]["updates_per_rollout"] = 2
    return values


def write_recipe(values: dict[str, Any], path: Path) -> Path:
    """`values` as YAML."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """`rows` as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expect_success(ranks: Sequence[Finished]) -> None:
    """Fails with the output of the command that failed."""
    for rank in ranks:
        assert rank.exit_code == 0, rank.output


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
