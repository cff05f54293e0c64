"""launch/evaluate_nemo.sh from the first line to the last, with a stand-in for srun only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness_runs import ROOT, harness_venv
from served_model import Grids, OurAnswers, is_listening
from tiny_training import TinyStart

pytestmark = pytest.mark.harness

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
"$@"
"""


def run_job(folder: Path, port: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As sbatch would start it; the script takes the port from the job's number."""
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": str(port - 20000),
        "MOE_GRPO_PYTHON": sys.executable,
        "MOE_GRPO_NEMO_EVALUATOR": str(harness_venv("nemo-evaluator") / "bin" / "nemo-evaluator"),
    }  # fmt: skip
    return subprocess.run(
        ["bash", ROOT / "launch" / "evaluate_nemo.sh", *map(str, arguments)],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def port_of_a_job() -> int:
    """A free port among those that the script takes."""
    return next(port for port in range(20000 + os.getpid() % 9000, 30000) if not is_listening(port))


def test_a_job_serves_evaluates_and_cleans_up(start: TinyStart, grids: Grids, ours: OurAnswers, tmp_path: Path) -> None:
    port = port_of_a_job()
    done = run_job(tmp_path, port, start.warm, tmp_path / "out", f"digit_grids={grids.ours}")
    assert done.returncode == 0, done.stdout
    results = yaml.safe_load((tmp_path / "out" / "digit_grids" / "results.yml").read_text())
    overall = results["results"]["tasks"]["digit_grids"]["metrics"]["overall"]["scores"]
    assert overall["strict"]["value"] == ours.scores["strict.overall"]
    assert not is_listening(port)
    assert not (tmp_path / "out" / "api_key").exists()


def test_a_job_with_an_unknown_task_fails(start: TinyStart, grids: Grids, tmp_path: Path) -> None:
    port = port_of_a_job()
    done = run_job(tmp_path, port, start.warm, tmp_path / "out", f"digit_gird={grids.ours}")
    assert done.returncode == 1
    assert "did you mean digit_grids?" in done.stdout
    assert not is_listening(port)
