"""What one rank finds out, all of them must act on: alone it would stop, and the others wait for it."""

from collections.abc import Callable

import torch.distributed as dist

from megatron_moe_grpo.errors import MoeGrpoError


def on_all_ranks(work: Callable[[], object]) -> None:
    """Does `work()` on every rank; the user's error of the first rank that has one is raised on all."""
    mine: MoeGrpoError | None = None
    try:
        work()
    except MoeGrpoError as error:
        mine = error
    errors: list[MoeGrpoError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine)
    for error in errors:
        if error is not None:
            raise error
