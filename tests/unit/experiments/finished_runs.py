"""Files of finished runs, made up."""

import json
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config import dump_config
from megatron_moe_grpo.experiments.jobs import beside
from megatron_moe_grpo.experiments.plan import PlannedRun


def finish(run: PlannedRun, accuracy: float, answers: dict[str, list[bool]] | None = None, **line: Any) -> None:
    """Everything that a finished run of three steps leaves; `line` goes into the metrics of every step."""
    run.job.steps[0].output.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    first = {"step": 0, "eval_accuracy": 0.25, "eval_num_examples": 1000, "eval_blank_accuracy": 0.24}
    steps = [{"step": step, "loss": 1.0, **line} for step in (1, 2)]
    last = {"step": 3, "eval_accuracy": accuracy, "eval_num_examples": 1000, "eval_blank_accuracy": 0.26, **line}
    write_lines(run.folder / "metrics.jsonl", [first, *steps, last])
    write_lines(run.folder / "timing.jsonl", [{"step": n, "rollout_s": 1.0, "update_s": 2.0} for n in (1, 2, 3)])
    for name, is_correct in (answers or {}).items():
        write_lines(run.answers[name], [{"id": str(n), "is_correct": right} for n, right in enumerate(is_correct)])
    attempts = [attempt("train", -15, "aaa"), attempt("train", 0, "bbb"), attempt("evaluate on noisy", 0, "ccc")]
    write_lines(beside(run.folder, ".attempts.jsonl"), attempts)


def attempt(step: str, exit_code: int, commit: str) -> dict[str, Any]:
    return {"step": step, "exit_code": exit_code, "cpu_s": 10.0, "wall_s": 15.0, "commit": commit}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
