"""lmms-eval against our server: free answers to pictures."""

from pathlib import Path

import pytest
from harness_runs import harness_venv, only_file, read_json, read_samples, run_harness, task_folder
from served_model import Grids, OurAnswers, ServedModel

pytestmark = pytest.mark.harness


def test_lmms_eval_gives_our_score_on_pictures(
    served: ServedModel, grids: Grids, ours: OurAnswers, tmp_path: Path
) -> None:
    venv = harness_venv("lmms-eval")
    folder = task_folder("lmms_eval_tasks", grids.harness, tmp_path / "tasks")
    # It wants the base URL, unlike the others, and changes requests to models whose name holds o1, o3 or o4.
    endpoint = f"model_version={served.model},base_url={served.base_url},num_concurrent=4,max_retries=1"
    ended = run_harness(
        [venv / "bin" / "python", "-m", "lmms_eval", "--model", "openai", "--model_args", endpoint, "--tasks", "grids",
         "--include_path", ".", "--batch_size", "1", "--output_path", "out", "--log_samples"], folder,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    # What it writes as the answer of a request that failed, with exit code 0.
    assert "LMMS_EVAL_REQUEST_FAILED" not in ended.output
    results = read_json(only_file(folder / "out", "*_results.json"))
    assert results["n-samples"]["grids"]["effective"] == len(ours.responses)
    assert read_samples(folder / "out", "*_samples_grids.jsonl") == ours.responses
    score = sum(ours.correct) / len(ours.correct)
    assert results["results"]["grids"]["exact_match,none"] == pytest.approx(score)
