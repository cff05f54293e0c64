"""The harness package without nemo-evaluator: its list of tasks, what its runner refuses, and the pins."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_moe_grpo.evaluation.benchmarks.registry import BENCHMARKS

ROOT = Path(__file__).resolve().parents[3]
HARNESS = ROOT / "tools" / "nemo_harness"
FRAMEWORK = HARNESS / "core_evals" / "moe_grpo" / "framework.yml"


def run_runner(out: Path, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The runner against an endpoint that nobody answers at."""
    command = [sys.executable, "-m", "core_evals.moe_grpo.runner", "--url", "http://127.0.0.1:9/v1", "--model", "m"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HARNESS)])}
    return subprocess.run(
        [*command, "--out", str(out), "--parameters", json.dumps({"task": "digit_grids"} | parameters)],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_every_benchmark_is_a_task() -> None:
    evaluations = yaml.safe_load(FRAMEWORK.read_text(encoding="utf-8"))["evaluations"]
    assert [evaluation["name"] for evaluation in evaluations] == list(BENCHMARKS)
    for evaluation in evaluations:
        config = evaluation["defaults"]["config"]
        assert config["type"] == config["params"]["task"] == evaluation["name"]
        assert config["supported_endpoint_types"] == ["chat"]


def test_nothing_of_nemo_evaluator_answers_for_the_endpoint() -> None:
    defaults = yaml.safe_load(FRAMEWORK.read_text(encoding="utf-8"))["defaults"]
    interceptors = defaults["target"]["api_endpoint"]["adapter_config"]["interceptors"]
    # An empty list would be filled with the defaults, the cache among them.
    assert interceptors == [{"name": "endpoint", "enabled": False}]


def test_the_runner_refuses_a_folder_with_answers(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    done = run_runner(tmp_path, {"extra": {"data": "rows.jsonl"}})
    assert (done.returncode, "holds an earlier evaluation" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"extra": {}}, "config.params.extra.data is empty"),
        ({"extra": {"data": ""}}, "config.params.extra.data is empty"),
        ({"extra": {"data": "rows.jsonl"}, "top_p": 0.5}, "top_p"),
        ({"extra": {"data": "rows.jsonl"}, "temperature": 0.0}, "temperature"),
        ({"extra": {"data": "rows.jsonl", "dta": "x"}}, "extra.dta"),
    ],
)
def test_the_runner_refuses_what_it_would_ignore(tmp_path: Path, parameters: dict[str, Any], complaint: str) -> None:
    done = run_runner(tmp_path, parameters)
    assert (done.returncode, complaint in done.stderr) == (2, True)
    assert not (tmp_path / "evaluation").exists()


def test_every_pin_is_exact() -> None:
    pins = re.findall(r"^[\w-]+(?:\[\w+\])?.*", (ROOT / "requirements-eval.txt").read_text(encoding="utf-8"), re.M)
    assert len(pins) >= 4
    assert [
        pin for pin in pins if not re.match(r"[\w-]+(\[\w+\])?==[\d.]+( ; python_version .*)?(\s+#.*)?$", pin)
    ] == []


def test_a_section_is_its_pins_alone() -> None:
    """Its environment is made anew when the section changes: a comment must not count."""
    sections = runpy.run_path(str(HARNESS / "make_venv.py"))["sections"]
    text = "# head\n\n# [one]\n# why\na==1.0  # what; MIT; 1 MB\nb[api]==2 ; python_version < '3.11'\n\n# [two]\nc==3\n"
    assert sections(text) == {"one": "a==1.0\nb[api]==2 ; python_version < '3.11'\n", "two": "c==3\n"}
