"""The whole job in small, each step the command that a person would type: what `make demo` does in twenty minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forked_commands import ROOT, run_command
from PIL import Image
from tiny_training import expect_success, read_lines

STEPS = 3
DENSE_STEPS = 16
"""Enough for answers to be letters: before that our engine, which never says a special token, may differ."""
NUM_TEST = 9
RUN_FILES = {
    "config.yaml", "run.lock", "metrics.jsonl", "timing.jsonl", "samples.jsonl", "checkpoints", "wandb", "report.html",
}  # fmt: skip


class Job:
    """Commands that write below one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._num_run = 0

    def run(self, *arguments: object) -> str:
        self._num_run += 1
        ranks = run_command(arguments, self.out / "logs" / str(self._num_run))
        expect_success(ranks)
        return ranks[0].output

    def overrides(self, camera: str, checkpoint: Path, steps: int = STEPS, evaluates: bool = False) -> list[str]:
        rows = self.out / "data" / camera
        settings = {
            "output_dir": self.out, "model.checkpoint": checkpoint, "data.train": rows / "train.jsonl",
            "data.evaluation": rows / "test.jsonl" if evaluates else "null", "training.steps": steps,
            "training.save_every": steps, "training.prompts_per_step": 8, "training.micro_batch_prompts": 4,
            "rollout.group_size": 2, "logging.examples": 2,
            "optimizer.learning_rate": 3e-3, "optimizer.warmup_steps": 0,
        }  # fmt: skip
        return [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]

    def last_checkpoint(self, name: str, steps: int = STEPS) -> Path:
        return self.out / name / "checkpoints" / f"step_{steps:08d}"


def torchrun(arguments: list[object]) -> subprocess.CompletedProcess[str]:
    """Two real processes, started as users start them."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "megatron_moe_grpo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Everything up to the report; the tests look at what it left."""
    job = Job(tmp_path_factory.mktemp("pipeline"))
    out, recipes = job.out, ROOT / "examples" / "demo"
    job.run("tools/make_digit_grids.py", "--out", out / "data", "--train", 24, "--test", NUM_TEST)
    job.run("tools/show_examples.py", "--data", out / "data" / "clear" / "train.jsonl", "--out", out / "examples.png")
    job.run("tools/make_tiny_internvl.py", out / "dense_untrained", "--seed", 0)
    job.run("import", out / "dense_untrained", out / "dense_start")
    job.run("train", recipes / "1_dense_sft.yaml", *job.overrides("clear", out / "dense_start", DENSE_STEPS))
    job.run("export", job.last_checkpoint("dense_sft", DENSE_STEPS), out / "dense_hf")
    job.run("tools/upcycle_checkpoint.py", out / "dense_hf", out / "moe_hf", "--noise-scale", "1.0")
    job.run("import", out / "moe_hf", out / "moe_start")
    settings = job.overrides("washed_out", out / "moe_start", evaluates=True)
    done = torchrun(["train", recipes / "2_moe_grpo.yaml", *settings])
    assert done.returncode == 0, done.stderr
    job.run("export", job.last_checkpoint("moe_grpo"), out / "moe_grpo_hf")
    job.run("report", out / "moe_grpo")
    return job


def test_the_run_folder_is_complete(job: Job) -> None:
    run = job.out / "moe_grpo"
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["training"]["steps"] == STEPS
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert {"eval_accuracy", "eval_blank_accuracy"} <= lines[0].keys() & lines[-1].keys()
    assert all("reward_mean" in line and "groups_without_signal" in line for line in lines[1:])
    assert len(read_lines(run / "samples.jsonl")) == 2
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8") or (run / "report.html").stat().st_size > 10_000


def test_recorded_and_replayed_logprobs_agree_in_training(job: Job) -> None:
    # Measured: 2e-6.
    for line in read_lines(job.out / "moe_grpo" / "metrics.jsonl")[1:]:
        assert line["rollout_train_logprob_gap"] < 1e-5
        assert line["rollout_train_selection_logprob_gap"] < 1e-5


def test_the_contact_sheet_is_a_picture(job: Job) -> None:
    with Image.open(job.out / "examples.png") as sheet:
        assert sheet.width > 100 and sheet.height > 100


def test_transformers_gives_the_same_answers_from_the_export(job: Job) -> None:
    rows = job.out / "data" / "washed_out" / "test.jsonl"
    ours, theirs = job.out / "ours.jsonl", job.out / "theirs.jsonl"
    table = job.run("evaluate", job.last_checkpoint("moe_grpo"), "--data", rows, "--out", ours)
    job.run("evaluate", job.out / "moe_grpo_hf", "--data", rows, "--out", theirs)
    assert "blank images" in table
    assert len(read_lines(ours)) == NUM_TEST
    assert {line["response"] for line in read_lines(ours)} <= set("ABCD")
    assert read_lines(ours) == read_lines(theirs)
    # The trainer's own last evaluation was of the same weights.
    last = read_lines(job.out / "moe_grpo" / "metrics.jsonl")[-1]
    assert last["eval_accuracy"] == pytest.approx(sum(line["is_correct"] for line in read_lines(ours)) / NUM_TEST)


def test_the_export_is_stock(job: Job) -> None:
    config = json.loads((job.out / "moe_grpo_hf" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["InternVLForConditionalGeneration"]
    assert config["text_config"]["model_type"] == "qwen3_moe"
    assert not list((job.out / "moe_grpo_hf").glob("*.py"))


def test_two_processes_end_with_code_and_message_too(job: Job) -> None:
    overrides = job.overrides("washed_out", job.out / "moe_start", evaluates=True)
    done = torchrun(["train", ROOT / "examples" / "demo" / "2_moe_grpo.yaml", *overrides, "--set", "seed=1"])
    assert done.returncode != 0
    assert done.stderr.count("error: an output folder of another config") == 1
    assert "seed was 0 and is 1 now" in done.stderr
    assert "exitcode  : 2" in done.stderr
