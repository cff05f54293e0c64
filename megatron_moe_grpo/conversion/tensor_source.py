"""Named tensors that are read one at a time, so that a model larger than memory can flow from one layout to another."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from megatron_moe_grpo.conversion.ops import Shape


class TensorSource(Protocol):
    """What a converter, an upcycler or a writer takes: names, shapes and dtypes at once, values on demand."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Name -> shape, in the order in which the tensors are best read."""

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Name -> dtype."""

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU; the caller may keep it but must not write to it."""


class MemorySource:
    """A dict of tensors as a source; `read` gives the tensors themselves."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes: dict[str, torch.dtype] = {name: tensor.dtype for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class ZeroPadded:
    """A source with tensors of zeros after its own; they take the dtype of its first."""

    def __init__(self, source: TensorSource, zero_shapes: Mapping[str, Shape]):
        self._source = source
        dtype = next(iter(source.dtypes.values()))
        self.shapes: dict[str, Shape] = {**source.shapes, **zero_shapes}
        self.dtypes: dict[str, torch.dtype] = {**source.dtypes, **dict.fromkeys(zero_shapes, dtype)}

    def read(self, name: str) -> Tensor:
        if name in self._source.shapes:
            return self._source.read(name)
        return torch.zeros(self.shapes[name], dtype=self.dtypes[name])


def read_all(source: TensorSource) -> dict[str, Tensor]:
    """Every tensor of a source that fits into memory."""
    return {name: source.read(name) for name in source.shapes}
