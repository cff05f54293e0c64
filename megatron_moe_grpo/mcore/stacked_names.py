"""Names of single tensors inside Megatron's stacked ones.

Megatron stores the same weight of equal layers as one tensor with a leading axis of layers, and that of all experts as
one with an axis of experts: `decoder.layers.mlp.experts.experts.linear_fc2.weight` at [3, 4] is what a model calls
`decoder.layers.3.mlp.experts.local_experts.4.linear_fc2.weight` (0.16.1: TransformerBlock and SequentialMLP,
`sharded_state_dict`).  Layers that are not all equal are stored one by one, under their own names.
"""

import re
from collections.abc import Sequence

STACK = re.compile(r"(?P<layers>\.layers)(?=\.\D)|(?P<experts>\.experts)\.experts(?=\.)")


def num_stacked_axes(key: str) -> int:
    """How many leading axes of the stored tensor `key` are stacks: 0, 1, or 2."""
    return len(STACK.findall(key))


def unstacked_name(key: str, index: Sequence[int]) -> str:
    """The model's own name of one tensor of the stack; `index` begins with its place on each stacked axis."""
    places = iter(index)

    def put_place(match: re.Match) -> str:
        return f"{match['layers'] or match['experts'] + '.local_experts'}.{next(places)}"

    return STACK.sub(put_place, key)
