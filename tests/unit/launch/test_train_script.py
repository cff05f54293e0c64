"""The cluster script with stand-ins for Slurm's commands: each way a job can end.  tests/slurm has the real ones."""

import json
import os
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "train_moe_grpo.sh"
# The stand-in for srun: does what the test says, and finds the status file among its arguments.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
status="${@: -1}"
eval "$STEP"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
[[ "$2" != hostnames ]] || printf 'first\\nsecond\\n'
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$CALLS"
"""


@dataclass(frozen=True)
class Ended:
    """A job's exit code, what it printed, and the Slurm commands it called."""

    code: int
    output: str
    calls: str


@dataclass(frozen=True)
class FakeSlurm:
    """Slurm's commands on a PATH of their own."""

    folder: Path

    def environment(self, step: str, **more: str) -> dict[str, str]:
        """What sbatch would set; `step` is what srun does, in bash."""
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "nodes", "SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
        here = {"CALLS": str(self.folder / "calls"), "MOE_GRPO_LOGS": str(self.folder / "logs"), "STEP": step}
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", **job, **here, **more}

    def run(self, step: str, **more: str) -> Ended:
        """Runs the script as sbatch would."""
        done = subprocess.run(
            ["bash", SCRIPT, "recipe.yaml", "--set", "seed=1"],
            env=self.environment(step, **more), capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout + done.stderr, (self.folder / "calls").read_text())


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return FakeSlurm(tmp_path)


def says(state: str, has_saved: bool = False) -> str:
    line = json.dumps({"state": state, "step": 3, "has_saved": has_saved, "reason": ""})
    return f"""echo '{line}' > "$status";"""


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    assert len(scripts) > 5
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_finished_run_ends_the_job(slurm: FakeSlurm) -> None:
    ended = slurm.run(says("finished"))
    assert (ended.code, "requeue" in ended.calls) == (0, False)
    assert "srun --kill-on-bad-exit=1" in ended.calls
    assert "launch/node.sh train recipe.yaml --set seed=1 --status-file" in ended.calls


@pytest.mark.parametrize("state", ["stopped", "hung", "running", "crashed"])
def test_a_run_that_can_go_on_is_queued_again(slurm: FakeSlurm, state: str) -> None:
    # torchrun makes 1 of every exit code.
    ended = slurm.run(says(state) + "exit 1", SLURM_RESTART_COUNT="2")
    assert ended.code == 0
    assert "scontrol requeue 7" in ended.calls
    assert "restart 3" in ended.output


def test_restarts_have_a_limit(slurm: FakeSlurm) -> None:
    ended = slurm.run(says("hung") + "exit 1", SLURM_RESTART_COUNT="4", MOE_GRPO_MAX_RESTARTS="4")
    assert (ended.code, "requeue" in ended.calls) == (1, False)
    assert "MOE_GRPO_MAX_RESTARTS" in ended.output


@pytest.mark.parametrize("state", ["hung", "running", "crashed"])
def test_an_end_that_comes_back_before_every_checkpoint_is_final(slurm: FakeSlurm, state: str) -> None:
    ends = says(state) + "exit 1"
    assert [slurm.run(ends).code for _ in range(3)] == [0, 0, 1]
    # After a new checkpoint: whatever it was, the run came further.
    assert slurm.run(says(state, has_saved=True) + "exit 1").code == 0
    assert [slurm.run(ends).code for _ in range(3)] == [0, 0, 1]


def test_a_crash_before_the_first_step_is_final(slurm: FakeSlurm) -> None:
    ended = slurm.run(says("crashed").replace(": 3", ": null") + "exit 1")
    assert (ended.code, "requeue" in ended.calls) == (1, False)


def test_a_run_that_was_stopped_in_time_never_counts_as_fruitless(slurm: FakeSlurm) -> None:
    assert [slurm.run(says("stopped") + "exit 1").code for _ in range(5)] == [0] * 5


def test_a_failed_run_shows_the_last_lines_of_the_rank_that_failed(slurm: FakeSlurm) -> None:
    logs = '"$MOE_GRPO_RANK_LOGS"'
    step = (
        f"mkdir -p {logs}/0/a/0 {logs}/0/a/1; echo quiet > {logs}/0/a/0/stderr.log;"
        f"printf 'Traceback\\nValueError: the cause\\n' > {logs}/0/a/1/stderr.log; {says('failed')} exit 1"
    )
    ended = slurm.run(step)
    assert (ended.code, "requeue" in ended.calls) == (1, False)
    assert "ValueError: the cause" in ended.output
    assert "quiet" not in ended.output


def test_a_run_that_says_nothing_has_failed(slurm: FakeSlurm) -> None:
    assert slurm.run("true").code == 1
    assert slurm.run("exit 9").code == 9


def test_what_an_earlier_run_said_does_not_count(slurm: FakeSlurm) -> None:
    assert slurm.run(says("finished")).code == 0
    assert slurm.run("true").code == 1


@pytest.mark.parametrize(("signal", "stops_workers", "queues"), [("USR1", True, True), ("TERM", False, False)])
def test_a_warning_is_passed_on_and_a_cancelled_job_is_not_queued_again(
    slurm: FakeSlurm, signal: str, stops_workers: bool, queues: bool
) -> None:
    step = f'touch "$CALLS.started"; for i in $(seq 200); do sleep 0.01; done; {says("stopped")} exit 1'
    job = subprocess.Popen(
        ["bash", SCRIPT, "recipe.yaml"], env=slurm.environment(step), stdout=subprocess.PIPE, text=True
    )
    while not (slurm.folder / "calls.started").exists():
        time.sleep(0.01)
    os.kill(job.pid, Signals[f"SIG{signal}"])
    job.communicate(timeout=30)
    calls = (slurm.folder / "calls").read_text()
    assert job.returncode == 0
    assert ("scancel --signal=USR1 7.0" in calls) is stops_workers
    assert ("scontrol requeue 7" in calls) is queues


def test_dry_run_needs_no_slurm(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "MOE_GRPO_LOGS": str(tmp_path), "SLURM_GPUS_ON_NODE": "8"}
    done = subprocess.run(
        ["bash", SCRIPT, "--dry-run", "recipe.yaml"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--nproc-per-node 8" in done.stdout
    assert "-m megatron_moe_grpo train recipe.yaml" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["evaluate", "convert", "upcycle", "serve", "experiment_array"])
def test_the_siblings_say_what_they_would_run(name: str) -> None:
    environment = {"PATH": os.environ["PATH"], "MOE_GRPO_PYTHON": "python", "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(
        ["bash", ROOT / "launch" / f"{name}.sh", "--dry-run", "ARGUMENT"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("srun --ntasks=1 python ")
    assert "ARGUMENT" in done.stdout
    assert name != "experiment_array" or "--seeds 2" in done.stdout


def test_a_container_is_told_to_srun(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "MOE_GRPO_CONTAINER": "image.sqsh", "MOE_GRPO_LOGS": str(tmp_path)}
    done = subprocess.run(
        ["bash", SCRIPT, "--dry-run", "recipe.yaml"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--container-image=image.sqsh" in done.stdout


def test_the_job_starts_where_it_was_queued_only(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", SCRIPT, "recipe.yaml"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "job.sh" in done.stderr
