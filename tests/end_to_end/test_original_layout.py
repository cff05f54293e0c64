"""A folder of InternVL's original layout through the commands: upcycled, imported, trained, exported as a stock one."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked_commands import run_command
from original_internvl import OriginalSizes, write_original_internvl
from PIL import Image
from tiny_training import expect_success, read_lines, write_rows

OPTIONS = ["A. 1", "B. 2", "C. 3", "D. 4"]
TILES, FRAMES = (50, 20), (20, 16)


def write_visual_rows(folder: Path) -> Path:
    """A picture of several tiles, a video of eight frames, both in one prompt, and none."""
    generator = np.random.default_rng(0)
    sizes = {"wide": TILES} | {f"frame{number}": FRAMES for number in range(8)}
    for name, (width, height) in sizes.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    image, video = {"image": "wide.png"}, {"video": [f"frame{number}.png" for number in range(8)]}
    rows = [
        {"id": "tiles", "problem": "How many?"} | image,
        {"id": "video", "problem": "What <video>\nmoves?"} | video,
        {"id": "both", "problem": "Is <image>\nin <video>?"} | image | video,
        {"id": "text", "problem": "Which?"},
    ]
    return write_rows(folder / "rows.jsonl", [row | {"options": OPTIONS, "solution": "A"} for row in rows])


@pytest.mark.parametrize("text_model", ["qwen3", "qwen2"])
def test_the_original_layout_trains_and_leaves_as_stock(text_model: str, tmp_path: Path) -> None:
    write_original_internvl(tmp_path / "dense", OriginalSizes(text_model))
    rows = write_visual_rows(tmp_path)
    recipe = {
        "name": "run", "method": "moe_grpo", "output_dir": str(tmp_path),
        "model": {"checkpoint": str(tmp_path / "imported")}, "data": {"train": str(rows), "max_prompt_tokens": 200},
        "training": {"steps": 2, "prompts_per_step": 4, "micro_batch_prompts": 2, "save_every": 2},
        "rollout": {"group_size": 2, "token_temperature": 1.0}, "logging": {"wandb": "disabled"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    trained = tmp_path / "run" / "checkpoints" / "step_00000002"
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    commands: list[list[object]] = [
        ["tools/upcycle_checkpoint.py", tmp_path / "dense", tmp_path / "moe", "--num-experts", 4],
        ["import", tmp_path / "moe", tmp_path / "imported"],
        ["train", tmp_path / "recipe.yaml"],
        ["export", trained, tmp_path / "same"],
        ["export", trained, tmp_path / "native", "--layout", "native"],
        ["evaluate", trained, "--data", rows, "--out", ours],
        ["evaluate", tmp_path / "native", "--data", rows, "--out", theirs],
    ]
    for number, command in enumerate(commands):
        expect_success(run_command(command, tmp_path / f"log_{number}"))
    assert read_lines(ours) == read_lines(theirs) and len(read_lines(ours)) == 4
    assert len({line["response"] for line in read_lines(ours)}) > 1
    assert (tmp_path / "same" / "config.json").read_bytes() == (tmp_path / "moe" / "config.json").read_bytes()
    native = json.loads((tmp_path / "native" / "config.json").read_text())
    assert (native["model_type"], native["text_config"]["model_type"]) == ("internvl", f"{text_model}_moe")
