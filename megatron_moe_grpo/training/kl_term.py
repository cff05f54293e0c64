"""The KL term in the loop: the rollouts' tokens under the reference, this step's weight, and what it came to."""

import math
from dataclasses import replace

from megatron_moe_grpo.losses.kl_loss import KlTerm
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.run import Run
from megatron_moe_grpo.training.update_batch import UpdateSettings


def held_to_reference(
    run: Run, rollouts: RolloutBatch, settings: UpdateSettings, step: int
) -> tuple[RolloutBatch, KlTerm | None]:
    """The rollouts with the reference's log-probs and the term of `step`; both as they are without a KL term."""
    if run.kl is None or run.reference is None:
        return rollouts, None
    reference_BT = run.reference.token_logprob_BT(rollouts, settings)
    term = KlTerm(run.kl.beta_at(step), run.config.kl.estimator)
    return replace(rollouts, reference_logprob_BT=reference_BT), term


def observe_kl(run: Run, kl: KlTerm | None, metrics: dict[str, float]) -> dict[str, float]:
    """Tells the schedule the KL that was measured; returns the weight, for the log."""
    if run.kl is None or kl is None:
        return {}
    # Of an update that was skipped for a NaN there is nothing to learn, and `adaptive` would never forget it.
    if math.isfinite(metrics["kl_mean"]):
        run.kl.observe(metrics["kl_mean"])
    return {"kl_beta": kl.beta}
