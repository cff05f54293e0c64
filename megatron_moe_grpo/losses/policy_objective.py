"""What distinguishes one RL method from another, as a value.  MoE-GRPO Table 6."""

from dataclasses import dataclass
from typing import Literal

from megatron_moe_grpo.config.schema import RlMethod
from megatron_moe_grpo.losses.surrogate import Surrogate
from megatron_moe_grpo.losses.token_weights import TokenWeighting


@dataclass(frozen=True)
class PolicyObjective:
    """The policy loss of tokens and of expert selections; `objective_of` builds it from the settings.

    Gate-GRPO keeps one ratio for each (step, layer) and its own weights under every method (MoE-GRPO Eq. 5): a router
    sees one layer, and a product or mean over layers or positions would have to be known before the backward pass of
    the first router.  A method changes only the selections' surrogate and, through the advantages, their scale.
    """

    name: RlMethod
    token: Surrogate
    gate: Surrogate
    ratio: Literal["token", "sequence"] = "token"
    """One ratio a token, or one a response (GSPO)."""
    weighting: TokenWeighting = "sequence_mean"
    """How tokens are averaged."""
    divides_by_std: bool = True
    """Advantages are divided by their group's standard deviation (`group_advantages`)."""
