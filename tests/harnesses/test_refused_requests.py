"""What each harness makes of an endpoint that refuses some requests: ours must not score the rest.

Where another project's harness hides a refusal, the test says so, and docs/nemo.md tells how to see it.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from harness_runs import harness_venv, read_samples, run_harness, task_folder
from nemo_runs import run_nemo
from served_model import Grids

pytestmark = pytest.mark.harness

REFUSED = "largest"
"""A word of some questions."""


class Refusing(BaseHTTPRequestHandler):
    """Answers A, but to no question that holds REFUSED."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """/v1/chat/completions."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        choice = {"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        is_refused = REFUSED in asked
        body = json.dumps({"error": {"message": "refused"}} if is_refused else answer).encode()
        self.send_response(400 if is_refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Address of /v1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.fixture
def num_refused(grids: Grids) -> int:
    questions = [json.loads(line)["question"] for line in grids.harness.read_text().splitlines()]
    count = sum(REFUSED in question for question in questions)
    assert 0 < count < len(questions)
    return count


def test_nemo_evaluator_with_our_package_gives_no_results(
    endpoint: str, grids: Grids, num_refused: int, tmp_path: Path
) -> None:
    ended = run_nemo(f"{endpoint}/chat/completions", "m", grids.ours, tmp_path / "out")
    assert ended.code != 0
    assert f"{num_refused} of 24 questions got no answer" in ended.output
    assert not (tmp_path / "out" / "results.yml").exists()


def test_lm_eval_gives_no_results(endpoint: str, grids: Grids, num_refused: int, tmp_path: Path) -> None:
    folder = task_folder("lm_eval_tasks", grids.harness, tmp_path / "tasks")
    ended = run_harness(
        [harness_venv("lm-eval") / "bin" / "lm_eval", "--model", "local-chat-completions", "--model_args",
         f"model=m,base_url={endpoint}/chat/completions,num_concurrent=4,max_retries=1", "--tasks", "grids",
         "--include_path", ".", "--apply_chat_template", "--output_path", "out"], folder,
    )  # fmt: skip
    assert ended.code != 0
    assert not list((folder / "out").rglob("results_*.json"))


def test_lmms_eval_scores_refusals_as_answers(endpoint: str, grids: Grids, num_refused: int, tmp_path: Path) -> None:
    """Its exit code is 0.  If this fails after an upgrade, it has become better: say so in docs/nemo.md."""
    folder = task_folder("lmms_eval_tasks", grids.harness, tmp_path / "tasks")
    ended = run_harness(
        [harness_venv("lmms-eval") / "bin" / "python", "-m", "lmms_eval", "--model", "openai", "--model_args",
         f"model_version=m,base_url={endpoint},num_concurrent=4,max_retries=1", "--tasks", "grids",
         "--include_path", ".", "--batch_size", "1", "--output_path", "out", "--log_samples"], folder,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    answers = read_samples(folder / "out", "*_samples_grids.jsonl")
    assert sum("LMMS_EVAL_REQUEST_FAILED" in answer for answer in answers) == num_refused
