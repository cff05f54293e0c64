"""A made-up run folder, written through the real log."""

from pathlib import Path

import numpy as np
from PIL import Image

from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_log import MetricsLog

CONFIG_YAML = "name: demo\nmethod: moe_grpo\ntraining:\n  steps: 120\n"
TYPES = ("count", "largest", "where")


def write_moe_grpo_run(root: Path, num_steps: int = 120, problem: str = "Where is the 3?") -> RunFolder:
    """Every key that the trainer writes, an evaluation each 20 steps, and ten example rollouts."""
    folder = RunFolder.open(root / "demo", CONFIG_YAML)
    log = MetricsLog(folder)
    rng = np.random.default_rng(0)
    for step in range(num_steps + 1):
        share = step / num_steps
        metrics = _training_metrics(rng, share) if step > 0 else {}
        log.write(step, metrics | (_evaluation_metrics(rng, share) if step % 20 == 0 else {}))
    write_examples(folder, num_steps, root / "digit.png", problem)
    return folder


def write_sft_run(root: Path) -> RunFolder:
    """Only what a supervised run writes."""
    folder = RunFolder.open(root / "sft", CONFIG_YAML.replace("moe_grpo", "sft"))
    log = MetricsLog(folder)
    for step in range(1, 6):
        log.write(
            step,
            {
                "loss": 1.0 / step,
                "grad_norm": 0.5,
                "learning_rate": 1e-3,
                "answer_accuracy": 0.2 * step,
                "load_balancing_loss": float("nan"),
            },
        )
    return folder


def write_examples(folder: RunFolder, step: int, picture: Path, problem: str) -> None:
    """Ten groups of eight rollouts about one picture, which is made too."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    MetricsLog(folder).write_samples(step, [_sample(f"example-{i}", problem, picture) for i in range(10)])


def _training_metrics(rng: np.random.Generator, share: float) -> dict:
    noise = rng.normal(0, 0.04, size=8).tolist()
    return {
        "reward_mean": 0.38 + 0.35 * share + noise[0],
        "reward_std": 0.3 - 0.15 * share + noise[1] / 3,
        "groups_without_signal": 0.35 + 0.3 * share + noise[2],
        "token_loss": noise[3],
        "gate_loss": noise[4],
        "load_balancing_loss": 1.2 + noise[5],
        "reward_accuracy_mean": 0.4 + 0.3 * share + noise[0],
        "reward_format_mean": 0.0,
        "kl_mean": abs(noise[1]),
        "kl_beta": 0.04 + 0.06 * share,
        "loss": noise[3] + noise[4] + 0.012,
        "grad_norm": 0.8 + noise[6],
        "learning_rate": 3e-4 * (1 + float(np.cos(np.pi * share))) / 2,
        "rollout_train_logprob_gap": 0.0 if share < 0.05 else 2e-6 + abs(noise[7]) * 1e-5,
        "rollout_train_selection_logprob_gap": 1e-6 + abs(noise[0]) * 1e-5,
        "token_clip_fraction": abs(noise[1]),
        "gate_clip_fraction": abs(noise[2]),
        "token_ratio_max_deviation": abs(noise[3]),
        "router_entropy_nats": 1.9,
        "response_tokens_mean": 2.0,
        "expert_load_max_over_mean": 1.6 + noise[4],
    }


def _evaluation_metrics(rng: np.random.Generator, share: float) -> dict:
    counts = {name: rng.integers(50, 400, size=(4, 8)).tolist() for name in TYPES}
    return {
        "eval_accuracy": 0.38 + 0.35 * share,
        "eval_blank_accuracy": 0.25,
        "eval_utilisation_entropy_nats": 1.5 + share / 2,
        "eval_accuracy_by_type": {name: 0.3 + 0.1 * i + 0.3 * share for i, name in enumerate(TYPES)},
        "eval_expert_counts_LN": np.sum(list(counts.values()), axis=0).tolist(),
        "eval_expert_counts_by_type": counts,
    }


def _sample(example_id: str, problem: str, picture: Path) -> dict:
    return {
        "id": example_id,
        "problem_type": "where",
        "problem": problem,
        "solution": "B",
        "experts_differ": 0.42,
        "options": ["A. top-left", "B. top-right", "C. bottom-left", "D. bottom-right"],
        "visual_paths": [str(picture)],
        "responses": ["B", "A", "B", "", "C", "B", "B", "D"],
        "rewards": [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
    }
