"""The short form of `python -m megatron_moe_grpo.testing.chaos`: two ranks under torchrun, four accidents."""

import json
import os
import subprocess
import sys
from pathlib import Path

from megatron_moe_grpo.testing.chaos import digest_of

ROOT = Path(__file__).resolve().parents[2]


def test_a_disturbed_run_ends_like_one_that_was_left_alone(tmp_path: Path) -> None:
    facts, kept = tmp_path / "facts.json", tmp_path / "kept"
    command = [sys.executable, "-m", "megatron_moe_grpo.testing.chaos", "--kills", "4", "--json", facts, "--out", kept]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(facts.read_text())
    events = found["events"]
    assert len(events) == 4
    assert any(event["place"] == "inside a save" for event in events)
    assert all(event["exit_code"] != 0 for event in events), "an accident missed"
    # It saves every third step: killed inside a save a run loses three, with the newest checkpoint damaged three more.
    assert max(event["steps_lost"] for event in events) <= 6
    assert found["same"]

    metrics = kept / "disturbed" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step": 7', b'"step": 8'))
    assert digest_of(kept / "disturbed") != digest_of(kept / "alone")
