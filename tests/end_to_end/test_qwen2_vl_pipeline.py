"""The whole job for a tiny Qwen2-VL, on text, pictures and videos: every step the command that a person would type."""

from pathlib import Path
from typing import Any

import pytest
from forked_commands import ROOT, run_command
from tiny_training import expect_success, read_lines, write_recipe, write_rows

SFT_STEPS, GRPO_STEPS = 24, 3
"""Enough for answers to be letters: before that our engine, which never says a special token, may differ."""
NUM_TEST = 12


class Job:
    """Commands that write below one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._num_run = 0

    def run(self, *arguments: object, num_ranks: int = 1) -> str:
        self._num_run += 1
        ranks = run_command(arguments, self.out / "logs" / str(self._num_run), num_ranks)
        expect_success(ranks)
        return ranks[0].output

    def recipe(self, method: str, checkpoint: Path, steps: int, **sections: dict[str, Any]) -> Path:
        values: dict[str, Any] = {
            "name": method,
            "method": method,
            "output_dir": str(self.out),
            "model": {"checkpoint": str(checkpoint)},
            "data": {"train": str(self.out / "data" / "clear" / "mixed.jsonl"), "video_frames": 4},
            "training": {"steps": steps, "prompts_per_step": 8, "micro_batch_prompts": 4, "save_every": steps},
            "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
            "logging": {"wandb": "disabled"},
            **sections,
        }
        return write_recipe(values, self.out / f"{method}.yaml")

    def last_checkpoint(self, name: str, steps: int) -> Path:
        return self.out / name / "checkpoints" / f"step_{steps:08d}"


def mixed_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One in four as it is, one with a picture more, one as a video of three frames, one with both; and one without."""
    mixed: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        row = {key: value for key, value in row.items() if key not in ("image", "images")} | {"id": f"mixed-{index}"}
        picture, other = (rows[place % len(rows)]["image"] for place in (index, index + 1))
        visuals: dict[str, Any] = [
            {"images": [picture]},
            {"images": [other, picture]},
            {"video": [picture, other, picture]},
            {"images": [picture], "video": [other, picture], "problem": "<video> then <image>. " + row["problem"]},
        ][index % 4]
        mixed.append(row | visuals)
    return [*mixed, {**row, "id": "text-only", "problem": "How many?"} | {"solution": "B"}]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Everything up to the export; the tests look at what it left."""
    job = Job(tmp_path_factory.mktemp("qwen2_vl"))
    out = job.out
    job.run("tools/make_digit_grids.py", "--out", out / "data", "--train", 24, "--test", NUM_TEST)
    for rows, mixed in (("train", "mixed"), ("test", "mixed_test")):
        folder = out / "data" / "clear"
        write_rows(folder / f"{mixed}.jsonl", mixed_rows(read_lines(folder / f"{rows}.jsonl")))
    job.run("tools/make_tiny_qwen2_vl.py", out / "dense_untrained", "--seed", 0, "--layers", 2)
    job.run("import", out / "dense_untrained", out / "dense_start")
    job.run("train", job.recipe("sft", out / "dense_start", SFT_STEPS))
    job.run("export", job.last_checkpoint("sft", SFT_STEPS), out / "dense_hf")
    job.run("tools/upcycle_checkpoint.py", out / "dense_hf", out / "moe_hf", "--noise-scale", "0.5")
    job.run("import", out / "moe_hf", out / "moe_start")
    grpo = {"rollout": {"group_size": 4, "token_temperature": 1.0}, "parallel": {"expert": 2}}
    job.run("train", job.recipe("moe_grpo", out / "moe_start", GRPO_STEPS, **grpo), num_ranks=2)
    job.run("export", job.last_checkpoint("moe_grpo", GRPO_STEPS), out / "moe_grpo_hf")
    return job


def test_training_sees_videos_and_learns_something(job: Job) -> None:
    lines = read_lines(job.out / "sft" / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.7 * lines[1]["loss"]


def test_recorded_and_replayed_logprobs_of_qwen2_vl_agree(job: Job) -> None:
    lines = read_lines(job.out / "moe_grpo" / "metrics.jsonl")
    assert len(lines) >= GRPO_STEPS
    # Measured: 2e-6.
    for line in lines:
        if "rollout_train_logprob_gap" in line:
            assert line["rollout_train_logprob_gap"] < 1e-5
            assert line["rollout_train_selection_logprob_gap"] < 1e-5


def test_transformers_gives_the_same_answers_from_the_qwen2_vl_export(job: Job) -> None:
    rows = job.out / "data" / "clear" / "mixed_test.jsonl"
    ours, theirs = job.out / "ours.jsonl", job.out / "theirs.jsonl"
    job.run("evaluate", job.last_checkpoint("moe_grpo", GRPO_STEPS), "--data", rows, "--out", ours)
    job.run("evaluate", job.out / "moe_grpo_hf", "--data", rows, "--out", theirs)
    assert len(read_lines(ours)) == NUM_TEST + 1
    assert {line["response"] for line in read_lines(ours)} <= set("ABCD")
    assert read_lines(ours) == read_lines(theirs)


def test_both_folders_carry_our_modelling_file_and_the_export_passes_inspection(job: Job) -> None:
    source = ROOT / "megatron_moe_grpo" / "models" / "qwen2_vl" / "modeling_qwen2_vl_moe.py"
    for folder in ("moe_hf", "moe_grpo_hf"):
        assert [path.read_bytes() for path in (job.out / folder).glob("*.py")] == [source.read_bytes()]
    assert "nothing is wrong" in job.run("tools/convert_checkpoint.py", "--inspect", job.out / "moe_grpo_hf")
