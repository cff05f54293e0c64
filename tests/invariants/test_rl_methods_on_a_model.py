"""The RL methods and the KL term through a real model: what must agree on the first update, and what a reference adds.

At the weights that made the rollouts every ratio is 1, and each method is policy gradient under its own weights:
methods with the same average have the same gradient, whatever stands between them in their surrogates.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from tiny_policy import Bench, gradients, load_policy, relative_gap, trainable, update_settings
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig, RlMethod
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.losses.kl_loss import KlTerm
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients


@dataclass(frozen=True)
class FirstUpdate:
    """Rollouts and the very model that made them."""

    bench: Bench
    trained: TrainableModel
    rollouts: RolloutBatch

    def run(
        self, method: RlMethod, kl: KlTerm | None = None, micro_batch_prompts: int = 2, **coefficients: float
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and gradients of `method`, without load balancing."""
        values = {"load_balancing_coefficient": 0.0} | coefficients
        settings = update_settings(LossConfig(rl_method=method, **values), micro_batch_prompts=micro_batch_prompts)
        advantages = group_advantages(
            self.rollouts.reward_B, self.rollouts.group_size, settings.objective.divides_by_std
        )
        metrics = accumulate_gradients(
            self.trained, self.bench.layout, self.rollouts, advantages.advantage_B, settings, kl
        )
        return metrics, gradients(self.trained)

    def held_to(self, reference_logprob_BT: Tensor) -> "FirstUpdate":
        """The same with a reference policy."""
        return replace(self, rollouts=replace(self.rollouts, reference_logprob_BT=reference_logprob_BT))


@pytest.fixture(scope="module")
def first_update(bench: Bench) -> Iterator[FirstUpdate]:
    model = load_policy(bench.folder)
    yield FirstUpdate(bench, trainable(model), bench.roll_out(model))


def largest_gap(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over all parameters, relative to the largest gradient of any."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((got[name] - gradient).abs().max()) for name, gradient in expected.items()) / largest


@pytest.mark.parametrize(("method", "same_as"), [("gspo", "grpo"), ("sapo", "grpo"), ("cispo", "dapo")])
def test_first_gradients_of_methods_with_one_average_are_equal(
    method: RlMethod, same_as: RlMethod, first_update: FirstUpdate
) -> None:
    metrics, gradient = first_update.run(method)
    _, expected = first_update.run(same_as)
    # Measured 2e-7: recorded and replayed log-probs differ by rounding.
    assert largest_gap(gradient, expected) < 2e-5
    assert metrics["token_clip_fraction"] < 1e-5 and metrics["gate_clip_fraction"] < 1e-5


def test_first_gradients_of_different_averages_differ(first_update: FirstUpdate) -> None:
    assert first_update.rollouts.responses.is_response_BT.sum(dim=1).unique().numel() > 1
    by_method = {method: first_update.run(method, gate_coefficient=0.0)[1] for method in ("grpo", "dapo", "dr_grpo")}
    for method, other in (("grpo", "dapo"), ("grpo", "dr_grpo"), ("dapo", "dr_grpo")):
        assert largest_gap(by_method[method], by_method[other]) > 1e-2


def test_kl_to_the_policy_itself_is_zero_and_moves_nothing(first_update: FirstUpdate) -> None:
    held = first_update.held_to(first_update.rollouts.responses.token_logprob_BT)
    metrics, gradient = held.run("grpo", KlTerm(beta=10.0))
    without, expected = first_update.run("grpo")
    assert metrics["kl_loss"] == pytest.approx(0, abs=1e-9) and metrics["kl_mean"] == pytest.approx(0, abs=1e-9)
    # Measured 1.1e-6 at beta 10.
    assert largest_gap(gradient, expected) < 2e-5
    assert metrics.keys() - without.keys() == {"kl_loss", "kl_mean"}


@pytest.mark.parametrize("micro_batch_prompts", [1, 4])
def test_kl_by_hand(micro_batch_prompts: int, first_update: FirstUpdate) -> None:
    responses = first_update.rollouts.responses
    # Garbage outside the responses is never read.
    reference_BT = (1.3 * responses.token_logprob_BT - 0.1).where(responses.is_response_BT, float("nan"))
    metrics, _ = first_update.held_to(reference_BT).run(
        "dapo", KlTerm(beta=0.25, estimator="k2"), micro_batch_prompts, gate_coefficient=0.0
    )
    d_M = (0.3 * responses.token_logprob_BT - 0.1)[responses.is_response_BT]
    expected = float((d_M.square() / 2).mean())
    assert expected > 1e-3
    assert metrics["kl_mean"] == pytest.approx(expected, rel=1e-5)
    assert metrics["kl_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["token_loss"] + 0.25 * expected, abs=1e-6)


def test_kl_adds_its_own_gradient(first_update: FirstUpdate) -> None:
    # Linear in beta: twice the weight adds twice as much.
    held = first_update.held_to(1.3 * first_update.rollouts.responses.token_logprob_BT)
    _, without = first_update.run("grpo")
    added = []
    for beta in (0.5, 1.0):
        _, gradient = held.run("grpo", KlTerm(beta))
        added.append({name: gradient[name] - without[name] for name in without})
    doubled = {name: 2 * gradient for name, gradient in added[0].items()}
    assert largest_gap(added[1], doubled) < 1e-5  # Measured 1.3e-6.
    assert relative_gap(added[0]["language_model.output_layer.weight"], torch.zeros(())) > 1e-3
