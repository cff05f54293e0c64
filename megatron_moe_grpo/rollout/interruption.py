"""Rollouts that are given up between two tokens, by all ranks together."""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.parallel import ParallelLayout

BetweenTokens = Callable[[], object]
"""Called before each token of a rollout on each rank; what is true asks all ranks to give the rollout up."""


def never() -> bool:
    """Asks for nothing."""
    return False


class StopRequested(Exception):  # noqa: N818 - nothing went wrong, as in StopIteration
    """The run shall end here: raised on all ranks together, when nothing has changed since the last whole step."""


def all_closed(is_open_B: Tensor, layout: ParallelLayout, is_asked: bool) -> bool:
    """True when no sequence on any rank is open; all ranks call it together.

    Raises:
        StopRequested: a rank was asked to stop.  The question rides on the reduction that decoding needs anyway.
    """
    num_open_and_asked = torch.stack((is_open_B.sum().float(), is_open_B.new_tensor(is_asked).float()))
    if layout.world_size > 1:
        layout.maximum(num_open_and_asked)
    most_open, asked = num_open_and_asked.tolist()
    if asked > 0:
        raise StopRequested
    return most_open == 0
