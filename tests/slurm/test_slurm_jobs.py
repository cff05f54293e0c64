"""`sbatch launch/train_moe_grpo.sh` on a real Slurm of two nodes; run by `make test-slurm`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_slurm import ENDED, LocalSlurm, problem_with_this_machine
from tiny_training import TinyStart, read_lines, recipe, tiny_start, write_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "train_moe_grpo.sh"
JOB_S = 240.0
PROBLEM = problem_with_this_machine()

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(PROBLEM is not None, reason=f"no Slurm here: {PROBLEM}")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    local = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    local.environment |= {"MOE_GRPO_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        local.start()
        yield local
    finally:
        local.stop()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


def write_two_ranks(start: TinyStart, folder: Path, name: str, steps: int) -> Path:
    values = recipe(start, "moe_grpo", folder, name) | {"parallel": {"expert": 2}}
    values["training"] = values["training"] | {"steps": steps}
    return write_recipe(values, folder / f"{name}.yaml")


def submit(slurm: LocalSlurm, folder: Path, arguments: list[object], *options: str) -> tuple[str, Path]:
    """Queues the script for both nodes; returns the job and its output file."""
    slurm.environment["MOE_GRPO_LOGS"] = str(folder / "logs")
    output = folder / "job.out"
    job = slurm.submit("--nodes=2", f"--output={output}", *options, SCRIPT, *arguments, folder=ROOT)
    return job, output


def without_slurm(recipe_file: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, "-m", "megatron_moe_grpo", "train", recipe_file], env=environment, check=True, capture_output=True
    )


def test_a_job_on_two_nodes_trains_what_one_machine_trains(slurm: LocalSlurm, start: TinyStart, tmp_path: Path) -> None:
    job, output = submit(slurm, tmp_path, [write_two_ranks(start, tmp_path, "cluster", steps=6)])
    assert slurm.wait(job, JOB_S) == "COMPLETED", output.read_text()
    assert json.loads((tmp_path / "logs" / job / "status.json").read_text())["state"] == "finished"
    assert len(list((tmp_path / "logs" / job / "ranks").rglob("stderr.log"))) == 2
    without_slurm(write_two_ranks(start, tmp_path, "alone", steps=6))
    assert (tmp_path / "cluster" / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


def test_a_job_that_slurm_warns_saves_and_goes_on_in_the_queue(
    slurm: LocalSlurm, start: TinyStart, tmp_path: Path
) -> None:
    steps = 60
    job, output = submit(slurm, tmp_path, [write_two_ranks(start, tmp_path, "warned", steps)])
    metrics, deadline_s = tmp_path / "warned" / "metrics.jsonl", time.monotonic() + JOB_S
    while not metrics.is_file() or len(read_lines(metrics)) < 5:
        assert slurm.state(job) not in ENDED and time.monotonic() < deadline_s, output.read_text()
        time.sleep(0.1)
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job, JOB_S) == "COMPLETED", output.read_text()
    said = output.read_text()
    assert "saved and stopped: queueing this job again, restart 1" in said
    assert "restart 1 of this Slurm job" in said
    without_slurm(write_two_ranks(start, tmp_path, "alone", steps))
    assert metrics.read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


def test_a_job_that_fails_shows_what_its_rank_said_last(slurm: LocalSlurm, start: TinyStart, tmp_path: Path) -> None:
    job, output = submit(slurm, tmp_path, [write_two_ranks(start, tmp_path, "bad", 6), "--set", "parallel.tensor=3"])
    assert slurm.wait(job, JOB_S) == "FAILED"
    assert "the number of processes does not fit the parallel sizes" in output.read_text()
    assert "queueing" not in output.read_text()


def test_a_job_starts_a_process_for_each_gpu(slurm: LocalSlurm, tmp_path: Path) -> None:
    job, output = submit(slurm, tmp_path, ["--dry-run", "recipe.yaml"], "--gpus-per-node=8")
    assert slurm.wait(job, JOB_S) == "COMPLETED"
    assert "--nnodes 2 --nproc-per-node 8" in output.read_text()
    assert "--rdzv-endpoint node0:" in output.read_text()
