"""A tiny trained model behind our server, our own evaluator's answers, and the same rows for both."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness_runs import ROOT, read_json

START_TIMEOUT_S = 120
POLL_S = 0.1


@dataclass(frozen=True)
class Grids:
    """The same questions for us and for the harnesses."""

    ours: Path
    harness: Path


@dataclass(frozen=True)
class ServedModel:
    """A running server."""

    base_url: str
    """Ends in /v1."""
    model: str
    """Its name there, used by no other run."""

    @property
    def chat_url(self) -> str:
        return f"{self.base_url}/chat/completions"


@dataclass(frozen=True)
class OurAnswers:
    """What our own evaluator says of the checkpoint, without a server."""

    scores: dict[str, float]
    """`strict.overall`, `official.problem_type.where`, ..."""
    responses: list[str]
    """In the order of the rows."""
    correct: list[bool]


def our_environment() -> dict[str, str]:
    """Of a command of ours."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_listening(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serve(checkpoint: Path, log: Path) -> Iterator[ServedModel]:
    """`serve CHECKPOINT`, from its first answer on /health to the end of the block."""
    port, model = free_port(), f"tiny-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "megatron_moe_grpo", "serve", checkpoint, "--port", port, "--model-name", model]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=subprocess.STDOUT, env=our_environment(), cwd=log.parent
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _is_healthy(port):
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(POLL_S)
        yield ServedModel(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.terminate()
        process.wait(timeout=30)


def evaluate_checkpoint(checkpoint: Path, rows: Path, folder: Path) -> OurAnswers:
    """`evaluate CHECKPOINT --benchmark`, our own evaluator on the same rows."""
    command = [sys.executable, "-m", "megatron_moe_grpo", "evaluate", checkpoint, "--benchmark", "digit_grids"]
    done = subprocess.run(
        [*map(str, command), "--data", rows, "--out", folder],
        env=our_environment(), cwd=folder.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return read_our_answers(folder)


def read_our_answers(folder: Path) -> OurAnswers:
    """What `evaluate --benchmark` left in its folder."""
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    return OurAnswers(
        scores=read_json(folder / "result.json")["scores"],
        responses=[line["response"] for line in lines],
        correct=[line["is_correct"] for line in lines],
    )


def write_harness_rows(rows: Path, out: Path) -> Path:
    """Our rows as the task files here read them: the picture's path, the prompt as we ask it, the right letter."""
    lines = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        question = "\n".join([row["problem"], *row["options"]])
        answer = row["solution"].removeprefix("<answer>").removesuffix("</answer>")
        picture = str(rows.parent / row["image"])
        lines.append(json.dumps({"id": row["id"], "image": picture, "question": question, "answer": answer}) + "\n")
    out.write_text("".join(lines), encoding="utf-8")
    return out


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False
