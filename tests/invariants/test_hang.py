"""A rank that no longer moves ends the job soon, with everyone's stacks."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 3.0


def test_a_stopped_rank_ends_the_job_with_all_stacks(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("stuck_worker.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([*torchrun, worker, tmp_path], env=environment, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 120
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < deadline_s, "never came so far"
        time.sleep(0.05)
    stopped_s = time.monotonic()
    _, said = job.communicate(timeout=120)
    seconds = time.monotonic() - stopped_s
    assert job.returncode != 0
    # torchrun's own way, a TERM and 30 seconds of waiting for a stopped process, would take over 33 s.  Idle: 5 s.
    assert TIMEOUT_S < seconds < 25, f"{seconds} s"
    reasons = [path.read_text(encoding="utf-8") for path in tmp_path.glob("hung_*")]
    assert reasons
    assert all("has not moved on in phase 'rollout'" in reason for reason in reasons)
    assert "has not moved on" in said
    assert "all_reduce" in (tmp_path / "stacks" / "rank_0.txt").read_text(encoding="utf-8")
    assert "stuck_worker.py" in (tmp_path / "stacks" / "rank_1.txt").read_text(encoding="utf-8")
