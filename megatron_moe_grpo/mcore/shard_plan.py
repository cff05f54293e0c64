"""Which piece of which stored tensor one rank of a parallel layout holds, as Megatron itself says."""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedBase,
    ShardedObject,
    ShardedTensor,
    apply_factories,
    is_main_replica,
)

from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.mcore.stacked_names import num_stacked_axes, unstacked_name

ModelBuilder = Callable[[], torch.nn.Module]


@dataclass(frozen=True)
class Shard:
    """A piece of a stored tensor; offsets and sizes count the stacked axes too."""

    key: str
    global_shape: Shape
    offsets: Shape
    sizes: Shape

    @property
    def name(self) -> str:
        """Of the unsharded model's tensor that it is a piece of."""
        return unstacked_name(self.key, self.offsets)

    @property
    def whole_shape(self) -> Shape:
        """Of that tensor."""
        return self.global_shape[num_stacked_axes(self.key) :]

    @property
    def num_values(self) -> int:
        return math.prod(self.sizes)

    def cut_from(self, whole: torch.Tensor) -> torch.Tensor:
        """This piece of that tensor, with the stacked axes in front."""
        num_stacked = num_stacked_axes(self.key)
        ranges = zip(self.offsets[num_stacked:], self.sizes[num_stacked:], strict=True)
        return whole[tuple(slice(start, start + size) for start, size in ranges)].reshape(self.sizes)

    def with_prefix(self, prefix: str) -> "Shard":
        """The same piece of another tensor of that shape, such as an optimizer's moment."""
        return replace(self, key=prefix + self.key)


@dataclass(frozen=True)
class RankPlan:
    """What one rank has to do with a checkpoint."""

    held: tuple[Shard, ...]
    """Everything in its memory."""
    written: tuple[Shard, ...]
    """What it writes: of pieces that several ranks hold alike, the first one's."""
    objects: dict[str, bytes]
    """Key -> what it writes that is not a tensor (Megatron's `_extra_state`)."""


def checkpoint_metadata() -> dict[str, Any]:
    """`fully_reshardable` loads under another layout; Megatron's default cannot (0.16.1)."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def content_metadata() -> dict[str, Any]:
    """The part of it that a checkpoint carries."""
    return {key: value for key, value in checkpoint_metadata().items() if key != "dp_cp_group"}


def plan_of_this_rank(build_model: ModelBuilder) -> RankPlan:
    """Builds this rank's model without memory for its weights, and asks it.  Needs process groups."""
    with torch.device("meta"):
        model = build_model()
    leaves = list(_sharded_leaves(model))
    held = tuple(leaf for leaf in leaves if isinstance(leaf, ShardedTensor))
    main = [leaf for leaf in leaves if is_main_replica(leaf.replica_id)]
    return RankPlan(
        held=tuple(_shard(leaf) for leaf in held),
        written=tuple(_shard(leaf) for leaf in main if isinstance(leaf, ShardedTensor)),
        objects={leaf.unique_key: _saved(leaf) for leaf in main if isinstance(leaf, ShardedObject)},
    )


def _sharded_leaves(model: torch.nn.Module) -> Iterator[ShardedBase]:
    state = model.sharded_state_dict(metadata=checkpoint_metadata())
    # A gated fc1 is two pieces: the gate's and the up-projection's rows are cut apart over ranks.
    apply_factories(state)
    return nested_values(state)


def _shard(leaf: ShardedTensor) -> Shard:
    assert leaf.prepend_axis_num == num_stacked_axes(leaf.key), f"{leaf.key}: other stacks than its name says"
    sizes = (1,) * leaf.prepend_axis_num + tuple(leaf.local_shape)
    return Shard(leaf.key, tuple(leaf.global_shape), tuple(leaf.global_offset), sizes)


def _saved(leaf: ShardedObject) -> bytes:
    """As Megatron's own writer does (dist_checkpointing/strategies/torch.py, 0.16.1)."""
    content = io.BytesIO()
    torch.save([leaf.data], content)
    return content.getvalue()
