"""The evaluation script with stand-ins for srun, our server and nemo-evaluator; tests/harnesses has the real ones."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "evaluate_nemo.sh"
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
"$@"
"""
# Stands in for `python -m megatron_moe_grpo serve CHECKPOINT --port N --model-name NAME`.
SERVER = f"""#!{sys.executable}
import http.server, os, sys
_, _, _, verb, checkpoint, _, port, _, name, _, key_file = sys.argv
assert oct(os.stat(key_file).st_mode)[-3:] == "600" and open(key_file).read().strip() == os.environ["MOE_GRPO_API_KEY"]
if checkpoint == "broken":
    sys.exit("error: not a checkpoint")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        if self.path == "/die":
            sys.exit("Error: out of memory")
    log_message = print
server = http.server.HTTPServer(("127.0.0.1", int(port)), Health)
print(f"serving {{name if checkpoint != 'other' else 'another'}} on http://127.0.0.1:{{port}}", flush=True)
server.serve_forever()
"""
NEMO = """#!/usr/bin/env bash
echo "$NEMO_EVALUATOR_TELEMETRY_LEVEL $*" >> "$CALLS"
while [[ $# -gt 1 ]]; do
    case "$1" in --model_url) url=$2 ;; --output_dir) out=$2 ;; --overrides) overrides=$2 ;; esac
    shift
done
case "$overrides" in
*fails*) exit 1 ;;
*empty*) exit 0 ;;
*dies*) curl --silent --output /dev/null "${url%/v1/*}/die"; sleep 0.5 ;;
*slow*) touch "$CALLS.slow"; sleep 60 ;;
esac
mkdir -p "$out"; echo results > "$out/results.yml"
"""


@dataclass(frozen=True)
class Stage:
    """A folder with the stand-ins."""

    folder: Path
    port: int

    def environment(self) -> dict[str, str]:
        # The script takes its port from the job's number.
        return {
            **os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": str(self.port - 20000),
            "CALLS": str(self.folder / "calls"), "MOE_GRPO_PYTHON": str(self.folder / "python"),
            "MOE_GRPO_NEMO_EVALUATOR": str(self.folder / "nemo"), "MOE_GRPO_SERVER_START_S": "10",
        }  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SCRIPT, *arguments],
            env=self.environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def is_server_gone(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    for name, text in (("srun", SRUN), ("python", SERVER), ("nemo", NEMO)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for port in range(20000 + os.getpid() % 9000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return Stage(tmp_path, port)
    raise AssertionError("no free port")


def test_every_task_is_evaluated_and_the_server_stopped(stage: Stage) -> None:
    out = stage.folder / "out"
    done = stage.run("checkpoint", str(out), "mme=a.tsv", "ai2d=b.tsv", "--", "config.params.parallelism=4")
    assert done.returncode == 0, done.stdout + done.stderr
    mme, ai2d = stage.calls()
    assert "0 run_eval --eval_type moe_grpo.mme " in mme
    assert "config.params.extra.data=a.tsv,config.params.parallelism=4" in mme
    assert f"--model_url http://127.0.0.1:{stage.port}/v1/chat/completions --output_dir {out}/ai2d" in ai2d
    assert "--api_key_name MOE_GRPO_API_KEY" in ai2d
    assert not (out / "api_key").exists()
    assert stage.is_server_gone()


@pytest.mark.parametrize("data", ["fails.tsv", "empty.tsv"])
def test_a_task_without_results_fails_the_job_and_not_the_others(stage: Stage, data: str) -> None:
    done = stage.run("checkpoint", str(stage.folder / "out"), f"mme={data}", "ai2d=b.tsv")
    assert done.returncode == 1
    assert "failed: mme\n" in done.stdout
    assert (stage.folder / "out" / "ai2d" / "results.yml").exists()
    assert stage.is_server_gone()


def test_a_server_that_does_not_start_is_shown(stage: Stage) -> None:
    done = stage.run("broken", str(stage.folder / "out"), "mme=a.tsv")
    assert done.returncode == 1
    assert "error: not a checkpoint" in done.stdout
    assert not (stage.folder / "calls").exists()


def test_a_server_of_somebody_else_is_not_evaluated(stage: Stage) -> None:
    environment = stage.environment() | {"MOE_GRPO_SERVER_START_S": "2"}
    done = subprocess.run(
        ["bash", SCRIPT, "other", stage.folder / "out", "mme=a.tsv"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "did not serve within 2 s" in done.stdout) == (1, True)
    assert not (stage.folder / "calls").exists()


def test_a_server_that_ends_early_fails_the_job(stage: Stage) -> None:
    done = stage.run("checkpoint", str(stage.folder / "out"), "mme=dies", "ai2d=b.tsv")
    assert done.returncode == 1
    assert "the server ended while mme=dies was evaluated" in done.stdout
    assert "Error: out of memory" in done.stdout
    assert len(stage.calls()) == 1


def test_a_folder_that_is_not_empty_is_refused(stage: Stage) -> None:
    (stage.folder / "out").mkdir()
    (stage.folder / "out" / "results.yml").touch()
    done = stage.run("checkpoint", str(stage.folder / "out"), "mme=a.tsv")
    assert (done.returncode, "name a new folder" in done.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("checkpoint", "out"), ("checkpoint", "out", "mme"), ("c", "o", "a=b,c=d")])
def test_a_wrong_command_line_is_refused(stage: Stage, arguments: tuple[str, ...]) -> None:
    assert stage.run(*arguments).returncode == 2


def test_a_job_that_is_cancelled_leaves_nothing_behind(stage: Stage) -> None:
    job = subprocess.Popen(
        ["bash", SCRIPT, "checkpoint", stage.folder / "out", "mme=slow"],
        env=stage.environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (stage.folder / "calls.slow").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    # The pipe ends when the last process that writes to it has gone: the sleeping task too.
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert stage.is_server_gone()


def test_a_dry_run_starts_nothing(stage: Stage) -> None:
    done = stage.run("--dry-run", "checkpoint", str(stage.folder / "out"), "mme=a.tsv")
    assert done.returncode == 0
    assert f"serve checkpoint --port {stage.port}" in done.stdout
    assert "--eval_type moe_grpo.mme" in done.stdout
    assert not (stage.folder / "out").exists()
