"""The recipes of examples/grpo_d/ fit together: each loads, and each start is what the run before it leaves."""

from pathlib import Path

import pytest

from megatron_moe_grpo.config.load import load_config

RECIPES = Path(__file__).resolve().parents[3] / "examples" / "grpo_d"


@pytest.mark.parametrize(("task", "beta"), [("counting", (0.04, 0.1)), ("geometry", (0.0, 0.02))])
def test_grpo_d_starts_where_supervised_training_ends(task: str, beta: tuple[float, float]) -> None:
    start, policy = (load_config(RECIPES / f"{task}_{step}.yaml") for step in ("1_sft", "2_grpo_d"))
    end = Path(start.output_dir) / start.name / "checkpoints" / f"step_{start.training.steps:08d}"
    assert Path(policy.model.checkpoint) == end
    assert start.training.steps % start.training.save_every == 0
    assert (start.method, policy.method) == ("sft", "grpo")
    assert (policy.kl.schedule, policy.kl.beta_min, policy.kl.beta_max) == ("dynamic", *beta)  # OThink-MR1 4
    assert policy.reward.format_coefficient == 1.0
    assert "{rationale}" in start.data.answer_template
    # Supervised in the clear world, GRPO-D in the shifted one of the same set.
    assert start.data.train.replace("clear/pretrain", "shifted/train") == policy.data.train
