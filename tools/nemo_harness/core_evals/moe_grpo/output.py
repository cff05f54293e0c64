"""Our result.json as nemo-evaluator's results; runs in nemo-evaluator's own environment."""

import json
from pathlib import Path
from typing import Any

from core_evals.moe_grpo.runner import FOLDER
from nemo_evaluator.api.api_dataclasses import EvaluationResult

# How an answer is read, and the control with blank pictures.
KINDS = ("official", "strict", "blank_official", "blank_strict")


def parse_output(output_dir: str) -> EvaluationResult:
    """One task, a metric for each row of our table; nemo-evaluator finds this function by its name."""
    result = json.loads((Path(output_dir) / FOLDER / "result.json").read_text(encoding="utf-8"))
    metrics = {row["name"]: {"scores": _scores(row)} for row in result["table"]}
    return EvaluationResult.model_validate({"tasks": {result["benchmark"]: {"metrics": metrics}}})


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    stats = {"count": row["num_examples"]}
    return {kind: {"value": row[kind], "stats": stats} for kind in KINDS if row[kind] is not None}
