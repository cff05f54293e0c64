"""What a loss function returns: the term and the numbers worth logging about it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossTerm:
    """One term of the objective."""

    loss: Tensor
    """Scalar, fp32, carries gradient; terms of micro-batches add up to the term of the batch."""
    metrics: dict[str, Tensor]
    """Detached scalars.  Over micro-batches they add up like the loss, except `*_max`, which take the largest."""
