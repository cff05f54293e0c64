"""The invertible operations between Hugging Face and Megatron-Core weights, and the rule that names them.

Every operation joins one or more Hugging Face tensors into one Megatron tensor (`forward`) and takes it apart
again, bit for bit (`inverse`).  Nothing is computed: values are only moved, so any dtype survives.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch import cat as concatenate

Shape = tuple[int, ...]


class Op(Protocol):
    """Joins the parts of one Megatron tensor, and takes them apart."""

    def fused_shape(self, part_shapes: Sequence[Shape]) -> Shape:
        """Shape of the joined tensor."""

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Hugging Face tensors to the Megatron tensor."""

    def inverse(self, fused: Tensor, part_shapes: Sequence[Shape]) -> list[Tensor]:
        """Megatron tensor to the Hugging Face tensors."""


@dataclass(frozen=True)
class Rename:
    """The same tensor under another name; the tensor itself is shared, not copied."""

    def fused_shape(self, part_shapes: Sequence[Shape]) -> Shape:
        (shape,) = part_shapes
        return shape

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        (part,) = parts
        return part

    def inverse(self, fused: Tensor, part_shapes: Sequence[Shape]) -> list[Tensor]:
        return [fused]


@dataclass(frozen=True)
class Concat:
    """Parts stacked along rows in the order given: (gate, up) -> Megatron's `linear_fc1`, gate first."""

    def fused_shape(self, part_shapes: Sequence[Shape]) -> Shape:
        return (sum(shape[0] for shape in part_shapes), *part_shapes[0][1:])

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        return concatenate(list(parts))

    def inverse(self, fused: Tensor, part_shapes: Sequence[Shape]) -> list[Tensor]:
        # Views: their rows lie together, and a copy would cost as much as writing them.
        return list(fused.split([shape[0] for shape in part_shapes]))


@dataclass(frozen=True)
class FuseQKV:
    """(q, k, v) -> Megatron's `linear_qkv`, weights and biases alike.

    Megatron interleaves by query group so that a tensor-parallel slice holds whole groups: for each
    key-value head, first the query heads that attend to it, then its k, then its v, `head_dim` rows each.
    """

    num_kv_heads: int
    """Query groups."""

    def fused_shape(self, part_shapes: Sequence[Shape]) -> Shape:
        return Concat().fused_shape(part_shapes)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        grouped = [part.reshape(self.num_kv_heads, -1, *part.shape[1:]) for part in parts]
        return concatenate(grouped, dim=1).reshape(self.fused_shape([tuple(part.shape) for part in parts]))

    def inverse(self, fused: Tensor, part_shapes: Sequence[Shape]) -> list[Tensor]:
        grouped = fused.reshape(self.num_kv_heads, -1, *fused.shape[1:])
        parts = grouped.split([shape[0] // self.num_kv_heads for shape in part_shapes], dim=1)
        # One copy each: `reshape` copies only what is not contiguous, and then a clone would be a second one.
        contiguous = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        return [part.reshape(shape) for part, shape in zip(contiguous, part_shapes, strict=True)]


@dataclass(frozen=True)
class Rule:
    """One line of a weight map: which Hugging Face tensors make which Megatron tensor.

    Keys are templates: `{layer}` and `{expert}` (or any other index) run over `range(repeat[index])`.
    """

    op: Op
    sources: Mapping[str, Shape]
    """Hugging Face key -> shape, in the order in which `op` takes the parts."""
    target: str
    """Megatron key."""
    repeat: Mapping[str, int] = field(default_factory=dict)
    """Index name -> count."""

    @property
    def huggingface_shapes(self) -> Mapping[str, Shape]:
        """Hugging Face key -> shape."""
        return self.sources

    @property
    def megatron_shapes(self) -> Mapping[str, Shape]:
        """Megatron key -> shape."""
        return {self.target: self.op.fused_shape(list(self.sources.values()))}

    @property
    def num_parameters(self) -> int:
        """Weights under this rule, all repeats together."""
        return math.prod(self.repeat.values()) * sum(math.prod(shape) for shape in self.sources.values())

    def expand(self) -> Iterator["Rule"]:
        """The rule once for every combination of its indices, with plain keys."""
        for values in itertools.product(*map(range, self.repeat.values())):
            indices = dict(zip(self.repeat, values, strict=True))
            sources = {key.format(**indices): shape for key, shape in self.sources.items()}
            yield replace(self, sources=sources, target=self.target.format(**indices), repeat={})


@dataclass(frozen=True)
class SplitRule(Rule):
    """A rule the other way round: one Hugging Face tensor (`target`) holds several Megatron tensors (`sources`)."""

    @property
    def huggingface_shapes(self) -> Mapping[str, Shape]:
        return super().megatron_shapes

    @property
    def megatron_shapes(self) -> Mapping[str, Shape]:
        return self.sources


@dataclass(frozen=True)
class ZeroRule(Rule):
    """Hugging Face tensors that Megatron does without: nothing but zeros, or no values at all.

    They are refused where they hold anything else, and written as zeros.  `target` names the Megatron module that is
    not there.
    """

    op: Op = field(default=Rename(), init=False)
    """Not used."""

    @property
    def megatron_shapes(self) -> Mapping[str, Shape]:
        return {}
