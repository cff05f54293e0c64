"""DAPO ("decoupled clip and dynamic sampling policy optimization").  DAPO Eq. 8.

* Clip-higher: the trust region reaches further up (0.28) than down (0.2), so that unlikely choices can grow.
* Token mean: every response token of the batch weighs the same, so long responses count for more.

Its other two parts are settings of the rollout and go with any method: `rollout.extra_rounds` replaces groups whose
rewards are all equal, `rollout.overlong_tokens` lets the reward fall before the limit (`overlong.py`).  Groups that
stay without signal keep their place: their tokens count in the mean, their advantages are 0.
"""

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.policy_objective import PolicyObjective

EPSILON_HIGH = 0.28


def dapo(losses: LossConfig) -> PolicyObjective:
    """Tokens and gates clipped at 1 - clip_epsilon and 1 + clip_epsilon_high (None: 0.28)."""
    clipped = ClippedSurrogate(losses.clip_epsilon, losses.clip_epsilon_high or EPSILON_HIGH)
    return PolicyObjective("dapo", token=clipped, gate=clipped, weighting="token_mean")
