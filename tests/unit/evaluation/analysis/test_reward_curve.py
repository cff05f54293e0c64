"""The reward of a run as a section: what is taken from metrics.jsonl, and values that are not finite."""

import pytest

from megatron_moe_grpo.evaluation.analysis.reward_curve import reward_section


def test_reward_section_by_hand() -> None:
    lines = [{"step": 0, "eval_accuracy": 0.5}]
    lines += [{"step": step, "reward_mean": step / 20, "reward_std": 1 - step / 20} for step in range(1, 21)]
    found = reward_section(lines)
    assert found["steps"] == list(range(1, 21))
    assert found["mean"][0] == 0.05
    # Two of twenty steps at each end.
    assert (found["first_mean"], found["last_mean"]) == (pytest.approx(0.075), pytest.approx(0.975))
    assert (found["first_std"], found["last_std"]) == (pytest.approx(0.925), pytest.approx(0.025))


def test_reward_section_leaves_out_what_is_not_finite() -> None:
    lines = [{"step": 1, "reward_mean": float("nan"), "reward_std": 0.5}]
    found = reward_section(lines)
    assert found["mean"] == [None]
    assert found["first_mean"] is None
    assert found["first_std"] == 0.5


def test_reward_section_of_a_supervised_run_is_none() -> None:
    assert reward_section([{"step": 1, "loss": 0.5}]) is None
    assert reward_section([]) is None
