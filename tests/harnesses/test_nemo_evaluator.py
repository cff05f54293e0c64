"""nemo-evaluator with our harness package against our server."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness_runs import ROOT, harness_venv, run_harness
from nemo_runs import RUN_CONFIG, run_nemo
from served_model import Grids, OurAnswers, ServedModel, free_port, read_our_answers

pytestmark = pytest.mark.harness


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """A place to send telemetry to, and the connections that were made."""
    connections: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_take_connections, args=(server, connections), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/events", connections


def _take_connections(server: socket.socket, connections: list[bytes]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connections.append(connection.recv(1000))


def results(out: Path) -> dict[str, dict[str, Any]]:
    """nemo-evaluator's values and numbers of examples, under the names of our result.json."""
    metrics = yaml.safe_load((out / "results.yml").read_text())["results"]["tasks"]["digit_grids"]["metrics"]
    return {f"{kind}.{name}": score for name, metric in metrics.items() for kind, score in metric["scores"].items()}


def test_nemo_evaluator_gives_our_scores(
    served: ServedModel, grids: Grids, ours: OurAnswers, tmp_path: Path, listener: tuple[str, list[bytes]]
) -> None:
    telemetry, connections = listener
    # A folder whose name a careless command line would take apart.
    out = tmp_path / "it's a folder"
    ended = run_nemo(served.chat_url, served.model, grids.ours, out, NEMO_EVALUATOR_TELEMETRY_ENDPOINT=telemetry)
    assert ended.code == 0, ended.output
    found = results(out)
    assert {name: score["value"] for name, score in found.items()} == ours.scores
    assert found["strict.overall"]["value"] == sum(ours.correct) / len(ours.correct)
    assert found["strict.overall"]["stats"]["count"] == len(ours.responses)
    assert read_our_answers(out / "evaluation").responses == ours.responses
    assert connections == []
    # Nothing that could answer for another checkpoint.
    assert not list(out.rglob("*cache*"))


def test_telemetry_is_what_the_listener_would_see(
    served: ServedModel, grids: Grids, tmp_path: Path, listener: tuple[str, list[bytes]]
) -> None:
    """The test above would pass with a listener that hears nothing."""
    telemetry, connections = listener
    more = {"NEMO_EVALUATOR_TELEMETRY_ENDPOINT": telemetry, "NEMO_EVALUATOR_TELEMETRY_LEVEL": "2"}
    run_nemo(served.chat_url, served.model, grids.ours, tmp_path / "out", **more)
    assert connections != []


def test_the_proxy_can_be_had_back(served: ServedModel, grids: Grids, ours: OurAnswers, tmp_path: Path) -> None:
    # Without a folder of its own it goes on counting where an earlier run, whichever, has stopped.
    stats = {"name": "response_stats", "config": {"cache_dir": str(tmp_path / "out" / "response_stats")}}
    proxy = {"interceptors": [{"name": "endpoint"}, stats]}
    config = {"target": {"api_endpoint": {"adapter_config": proxy}}}
    (tmp_path / RUN_CONFIG).write_text(yaml.safe_dump(config))
    ended = run_nemo(served.chat_url, served.model, grids.ours, tmp_path / "out")
    assert ended.code == 0, ended.output
    assert {name: score["value"] for name, score in results(tmp_path / "out").items()} == ours.scores
    counted = json.loads((tmp_path / "out" / "eval_factory_metrics.json").read_text())["response_stats"]
    assert counted["count"] == counted["successful_count"] == len(ours.responses)


def test_a_folder_with_answers_is_refused(served: ServedModel, grids: Grids, tmp_path: Path) -> None:
    (tmp_path / "out" / "evaluation").mkdir(parents=True)
    ended = run_nemo(served.chat_url, served.model, grids.ours, tmp_path / "out")
    assert ended.code != 0
    assert "holds an earlier evaluation" in ended.output
    assert not (tmp_path / "out" / "results.yml").exists()


def test_an_endpoint_that_does_not_answer_gives_no_results(grids: Grids, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1/chat/completions"
    ended = run_nemo(url, "nobody", grids.ours, tmp_path / "out", ",config.params.max_retries=0")
    assert ended.code != 0
    assert not (tmp_path / "out" / "results.yml").exists()


def test_a_parameter_that_we_do_not_have_is_refused(served: ServedModel, grids: Grids, tmp_path: Path) -> None:
    """nemo-evaluator itself warns and goes on without it."""
    ended = run_nemo(served.chat_url, served.model, grids.ours, tmp_path / "out", ",config.params.top_p=0.5")
    assert ended.code != 0
    assert "top_p" in ended.output
    assert not (tmp_path / "out" / "results.yml").exists()


def test_each_number_of_our_table_keeps_its_name(tmp_path: Path) -> None:
    """Where answers are plain letters all readings agree, so the run above would not see them mixed up."""
    row = {"name": "overall", "num_examples": 7, "official": 0.5, "strict": 0.25, "blank_official": 0.125}
    other = {"name": "category.color", "num_examples": 3, "official": 1.5, "strict": 1.25, "blank_official": 1.125}
    table = [row | {"blank_strict": 0.0}, other | {"blank_strict": None}]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "result.json").write_text(json.dumps({"benchmark": "digit_grids", "table": table}))
    code = "import sys, core_evals.moe_grpo.output as o; print(o.parse_output(sys.argv[1]).model_dump_json())"
    python = harness_venv("nemo-evaluator") / "bin" / "python"
    ended = run_harness([python, "-c", code, tmp_path], tmp_path, {"PYTHONPATH": str(ROOT / "tools" / "nemo_harness")})
    assert ended.code == 0, ended.output
    metrics = json.loads(ended.output.splitlines()[-1])["tasks"]["digit_grids"]["metrics"]
    found = {
        name: {kind: (score["value"], score["stats"]["count"]) for kind, score in metric["scores"].items()}
        for name, metric in metrics.items()
    }
    assert found == {
        "overall": {
            "official": (0.5, 7), "strict": (0.25, 7), "blank_official": (0.125, 7), "blank_strict": (0.0, 7),
        },
        "category.color": {"official": (1.5, 3), "strict": (1.25, 3), "blank_official": (1.125, 3)},
    }  # fmt: skip
