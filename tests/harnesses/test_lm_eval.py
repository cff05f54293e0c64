"""lm-eval against our server: free answers to pictures, and log-likelihoods of text."""

import json
from pathlib import Path

import pytest
import torch
from forked_commands import run_command
from harness_runs import harness_venv, only_file, read_json, read_samples, run_harness, task_folder
from served_model import Grids, OurAnswers, ServedModel
from tiny_training import TinyStart, expect_success
from transformers import AutoTokenizer

from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of

pytestmark = pytest.mark.harness

CHOICES = ["\nA", "\nB", "\nC", "\nD"]


def run_lm_eval(kind: str, endpoint: str, task: str, folder: Path, *options: str) -> Path:
    """Runs the task in its folder; returns where the results are.  No retries: a request that fails shall be seen."""
    program = harness_venv("lm-eval") / "bin" / "lm_eval"
    ended = run_harness(
        [program, "--model", kind, "--model_args", f"{endpoint},num_concurrent=4,max_retries=1", "--tasks", task,
         "--include_path", ".", "--output_path", "out", "--log_samples", *options], folder,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    return folder / "out"


def test_lm_eval_gives_our_score_on_pictures(
    served: ServedModel, grids: Grids, ours: OurAnswers, tmp_path: Path
) -> None:
    folder = task_folder("lm_eval_tasks", grids.harness, tmp_path / "tasks")
    endpoint = f"model={served.model},base_url={served.chat_url}"
    out = run_lm_eval("local-chat-completions", endpoint, "grids", folder, "--apply_chat_template")
    results = read_json(only_file(out, "results_*.json"))
    assert results["n-samples"]["grids"]["effective"] == len(ours.responses)
    assert [answer for [answer] in read_samples(out, "samples_grids_*.jsonl")] == ours.responses
    score = sum(ours.correct) / len(ours.correct)
    assert results["results"]["grids"]["exact_match,none"] == pytest.approx(score)


def test_lm_eval_gives_the_log_likelihoods_of_transformers(
    served: ServedModel, grids: Grids, start: TinyStart, tmp_path: Path
) -> None:
    expect_success(run_command(["export", start.warm, tmp_path / "hf"], tmp_path / "log_export"))
    expected = likelihoods_by_transformers(tmp_path / "hf", grids.harness)
    folder = task_folder("lm_eval_tasks", grids.harness, tmp_path / "tasks")
    # The tokenizer of this very model: with another one the numbers are wrong, and the exit code is 0 all the same.
    endpoint = f"model={served.model},base_url={served.base_url}/completions,tokenizer={tmp_path / 'hf'}"
    out = run_lm_eval("local-completions", f"{endpoint},tokenizer_backend=huggingface", "next_option", folder)
    found = [[float(likelihood) for likelihood, _ in row] for row in read_samples(out, "samples_next_option_*.jsonl")]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=0)
    answers = [json.loads(line)["answer"] for line in grids.harness.read_text().splitlines()]
    is_right = expected.argmax(dim=1) == torch.tensor(["ABCD".index(answer) for answer in answers])
    results = read_json(only_file(out, "results_*.json"))["results"]["next_option"]
    assert results["acc,none"] == pytest.approx(is_right.float().mean().item())


@torch.inference_mode()
def likelihoods_by_transformers(folder: Path, rows: Path) -> torch.Tensor:
    """ln P(choice | question) in nats, rows by choices, without a server."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = family_of(read_hf_config(folder)).huggingface_class().from_pretrained(folder, dtype="float32").eval()
    found = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)["question"]
        num_context = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        for choice in CHOICES:
            ids = torch.tensor(tokenizer(question + choice, add_special_tokens=False)["input_ids"])
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            found.append(logprobs.gather(1, ids[1:, None])[num_context - 1 :].sum())
    return torch.stack(found).view(-1, len(CHOICES))
