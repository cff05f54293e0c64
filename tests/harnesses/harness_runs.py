"""Other people's harnesses, each in its own virtual environment, and what they left."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TASKS = Path(__file__).resolve().parent
RUN_TIMEOUT_S = 600
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NEMO_EVALUATOR_TELEMETRY_LEVEL": "0"}


@dataclass(frozen=True)
class Ended:
    """A command's exit code and all that it printed."""

    code: int
    output: str


def harness_venv(name: str) -> Path:
    """The environment of a section of requirements-eval.txt, made the first time; skips where that is impossible."""
    made = _make_venv(name)
    if made.returncode != 0:
        pytest.skip(f"{name} cannot be installed here: {made.stderr.strip()}")
    return Path(made.stdout.strip())


@functools.cache
def _make_venv(name: str) -> subprocess.CompletedProcess[str]:
    """Once a session: where there is no package index, every try takes its time."""
    command = [sys.executable, ROOT / "tools" / "nemo_harness" / "make_venv.py", name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_harness(command: Sequence[object], folder: Path, more: Mapping[str, str] | None = None) -> Ended:
    """Runs a harness in `folder`, offline, with caches of its own: an earlier run's would answer for this one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    environment |= OFFLINE | {"HF_HOME": str(folder / "hf_home"), "OPENAI_API_KEY": "none"} | dict(more or {})
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout)


def task_folder(name: str, rows: Path, folder: Path) -> Path:
    """A copy of the task files `name` with the rows beside them, so that their paths need no machine's folders."""
    shutil.copytree(TASKS / name, folder)
    shutil.copy(rows, folder / "rows.jsonl")
    return folder


def only_file(folder: Path, pattern: str) -> Path:
    """The one file of that pattern below `folder`."""
    found = sorted(folder.rglob(pattern))
    assert len(found) == 1, f"{len(found)} files {pattern} in {folder}"
    return found[0]


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_samples(folder: Path, pattern: str) -> list[Any]:
    """What a harness logged as each row's response, in the order of the rows.  A row that it dropped fails here."""
    lines = [json.loads(line) for line in only_file(folder, pattern).read_text(encoding="utf-8").splitlines()]
    by_row = {line["doc_id"]: line["filtered_resps"] for line in lines}
    assert sorted(by_row) == list(range(len(lines))), "a row is missing or appears twice"
    return [by_row[row] for row in range(len(lines))]
