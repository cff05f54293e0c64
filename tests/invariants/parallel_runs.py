"""Starts the two processes of `parallel_step.py` once and reads what they left."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from parallel_step import ALL_CASES
from qwen_policy import write_qwen_policy
from tiny_policy import build_shard, load_policy, write_assets, write_mixed_policy, write_policy
from torch import Tensor

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel

SCRIPT = Path(__file__).with_name("parallel_step.py")
ROOT = SCRIPT.parents[2]
TIMEOUT_S = 240
"""A hang is a failure, not a wait: all cases together take 20 s on two idle cores."""


@dataclass(frozen=True)
class ParallelRuns:
    """Results of every case that ran, by name."""

    checkpoints: Path
    out: Path
    last_words: str
    """End of the processes' output, for the message of a case that left nothing."""

    def outcomes(self, name: str) -> list[dict]:
        """What each rank saw, rank 0 first."""
        paths = sorted((self.out / name).glob("outcome_*.pt"))
        assert len(paths) == 2, f"{name} did not finish:\n{self.last_words}"
        return [torch.load(path, weights_only=True) for path in paths]

    def gradient(self, name: str, layout: ParallelLayout) -> dict[str, Tensor]:
        """The whole gradient by parameter name: its checkpoint, loaded into an unsharded model."""
        folder = self.out / name / "gradient"
        assert (folder / "manifest.json").is_file(), f"{name} did not finish:\n{self.last_words}"
        model = build_shard(folder / "assets", ParallelConfig(), layout)
        load_checkpoint(folder, model)
        return dict(model.named_parameters())

    def checkpoint(self, name: str) -> Path:
        """The weights that the case started from."""
        return self.checkpoints / ALL_CASES[name].objective.checkpoint_name


def run_all_layouts(folder: Path, pictures: Path) -> ParallelRuns:
    """Writes one-process checkpoints, then runs every case on two processes."""
    start_parallel(ParallelConfig(), seed=0)
    policies = {
        "untied": write_policy(folder / "policies" / "untied"),
        "tied": write_policy(folder / "policies" / "tied", ties_embeddings=True),
        "qwen2_vl": write_qwen_policy(folder / "policies" / "qwen2_vl"),
        "qwen2_vl_tied": write_qwen_policy(folder / "policies" / "qwen2_vl_tied", ties_embeddings=True),
        "some_layers": write_mixed_policy(folder / "policies" / "some_layers", "0,2-3,6"),
        "last_stage": write_mixed_policy(folder / "policies" / "last_stage", "4-7"),
    }
    for name, policy in policies.items():
        assets = write_assets(policy, folder / "assets" / name)
        save_checkpoint(folder / "checkpoints" / name, load_policy(policy), assets, {"step": 0})
    stop_parallel()
    out = folder / "out"
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(SCRIPT.parent)))}
    with (folder / "log").open("w+") as log:
        try:
            subprocess.run(
                [*launcher, str(folder / "checkpoints"), str(pictures), str(out)],
                stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {TIMEOUT_S} s")
    return ParallelRuns(folder / "checkpoints", out, (folder / "log").read_text()[-4000:])
