"""Made-up values of analysis.json, as a model with two layers, four experts and two tasks would give them."""

import json
from pathlib import Path
from typing import Any

import torch

from megatron_moe_grpo.evaluation.analysis.agreement import AgreementSums
from megatron_moe_grpo.evaluation.analysis.example_routing import example_routing
from megatron_moe_grpo.evaluation.analysis.expert_use import task_section, utilisation_section
from megatron_moe_grpo.evaluation.analysis.modality import modality_counts, modality_section
from megatron_moe_grpo.evaluation.analysis.regret import routing_regret
from megatron_moe_grpo.evaluation.analysis.reward_curve import reward_section
from megatron_moe_grpo.mcore.moe_layers import RouterSizes

COUNTS_LN = {
    "count": torch.tensor([[4.0, 3, 2, 1], [1, 1, 1, 7]]),
    "where": torch.tensor([[1.0, 2, 3, 4], [5, 5, 0, 0]]),
}
HASH = "0" * 64


def analysis_values(name: str = "run", question: str = "Where is the 3?") -> dict[str, Any]:
    """Every section; eight examples of two tasks, half of them right."""
    regret = routing_regret([True, False], [[True, True], [False, True]])
    return head(name) | {
        "accuracy": {"top_k": 0.5, "by_task": {"count": [1, 4], "where": [3, 4]}},
        "rewards": reward_section([{"step": s, "reward_mean": s / 50, "reward_std": 0.5} for s in range(1, 51)]),
        "utilisation": utilisation_section(sum(COUNTS_LN.values())),
        "tasks": task_section(COUNTS_LN),
        "modality": {
            "rows": modality_section(modality_counts(COUNTS_LN["count"], COUNTS_LN["where"]), 0.25, 2),
            "training": None,
        },
        "agreement": _agreement(),
        "regret": regret | {"by_task": {"count": regret, "where": regret}},
        "examples": [_example(number, question) for number in range(8)],
        "left_out": {},
    }


def dense_values(name: str = "dense") -> dict[str, Any]:
    """Of a model without experts."""
    return head(name) | {
        "model": None,
        "accuracy": {"top_k": 0.25, "by_task": {"count": [1, 4]}},
        "examples": [_example(0, "?") | {"routes": [], "routing": None}],
        "left_out": {"utilisation": "the model is dense: it has no experts to choose"},
    }


def head(name: str) -> dict[str, Any]:
    return {
        "format": 1, "name": name, "method": "moe_grpo", "checkpoint": "step_00000050", "step": 50,
        "model": {"num_layers": 2, "num_experts": 4, "num_active": 2},
        "rows": {"file": "test.jsonl", "num_rows": 8, "num_skipped": 0, "sha256": HASH},
        "settings": {"guidance": "modality", "num_routes": 2},
    }  # fmt: skip


def write_values(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "analysis.json").write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
    return folder


def _agreement() -> dict[str, Any]:
    sums = AgreementSums(RouterSizes(2, 4, 2))
    experts_BSLK = torch.tensor([[[[0, 1], [2, 3]]]])
    sums.add(experts_BSLK, experts_BSLK.flip(3), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    return sums.section()


def _example(number: int, question: str) -> dict[str, Any]:
    is_vision_S = torch.tensor([True, True, False])
    logits_SLN = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(number))
    routing = example_routing(logits_SLN, logits_SLN.topk(2).indices, torch.ones(3, dtype=torch.bool), is_vision_S)
    is_correct = number % 2 == 0
    return {
        "id": f"example-{number}", "task": "count" if number < 5 else "where", "problem": question,
        "options": ["A. left", "B. right"], "solution": "A", "response": "A" if is_correct else "B",
        "is_correct": is_correct, "routing": routing,
        "routes": [{"response": "A", "is_correct": True}, {"response": "", "is_correct": False}],
    }  # fmt: skip
