"""A training run of half a minute, with everything on that has to survive: made here, without data and network."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_moe_grpo.data.digit_grid_files import write_digit_grids
from megatron_moe_grpo.data.digit_grids import KINDS
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=16, vision_layers=1, vision_heads=2, hidden_size=32, layers=2,
    heads=4, kv_heads=2, head_dim=8, ffn_size=24, max_positions=128,
)  # fmt: skip
NUM_ROWS, NUM_TEST = 16, 4
SAVE_EVERY = 3
# A model that has learned nothing answers nothing right.  This rewards what its responses do differ in, so that every
# update has advantages.
REWARD = """def distinct(response, solution, options):
    return len(set(response)) / 10
"""
# Longer than any phase of this run, start-up of a loaded machine included.
HANG_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class TinyJob:
    """A recipe, and the command that runs it."""

    recipe: Path
    run: Path
    """The run folder."""
    status: Path
    num_processes: int

    @property
    def command(self) -> list[str]:
        """What a user would type."""
        start = [sys.executable]
        if self.num_processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.num_processes}"]
        return [*start, "-m", "megatron_moe_grpo", "train", str(self.recipe), "--status-file", str(self.status)]


def make_model_and_rows(folder: Path) -> None:
    """Writes `folder`: a tiny upcycled InternVL as a Megatron checkpoint, and digit grids."""
    dense, moe = folder / "dense", folder / "moe"
    build_tiny_internvl(dense, SIZES, seed=0)
    settings = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
    state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), settings)
    write_hf_folder(moe, state, config, assets=dense)
    write_digit_grids(folder / "digits", NUM_ROWS, NUM_TEST, seed=0, cameras=("clear",), scale=1)
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    command = [sys.executable, "-m", "megatron_moe_grpo", "import", moe, folder / "start"]
    subprocess.run(command, env=environment(), check=True, capture_output=True)


def tiny_job(folder: Path, name: str, num_steps: int, num_processes: int) -> TinyJob:
    """A run called `name` of what `make_model_and_rows` made in `folder`."""
    rows = folder / "digits" / "clear"
    values: dict[str, Any] = {
        "name": name,
        "method": "moe_grpo",
        "output_dir": str(folder),
        "model": {"checkpoint": str(folder / "start")},
        "data": {"train": str(rows / "train.jsonl"), "evaluation": str(rows / "test.jsonl")},
        "training": {
            "steps": num_steps, "prompts_per_step": 4, "micro_batch_prompts": 2, "evaluate_every": 10,
            "save_every": SAVE_EVERY, "keep_checkpoints": 3, "updates_per_rollout": 2,
        },
        "rollout": {"group_size": 4, "token_temperature": 1.0, "max_new_tokens": 8, "extra_rounds": 1},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3, "weight_decay": 0.01, "schedule": "linear"},
        "reward": {"by_problem_type": dict.fromkeys(KINDS, f"python {folder / 'reward.py'}:distinct")},
        "parallel": {"expert": num_processes},
        "stability": {"hang_timeout_s": HANG_TIMEOUT_S},
        "logging": {"wandb": "disabled", "examples": 1},
    }  # fmt: skip
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    return TinyJob(recipe, folder / name, folder / f"{name}.status.json", num_processes)


def environment() -> dict[str, str]:
    """Of every process that is started here."""
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | dict(os.environ)
