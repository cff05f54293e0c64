"""Counts what autograd really keeps: bytes of the storages that saved tensors stand in, weights left out."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass
class SavedBytes:
    """Alive now, and at most so far."""

    now: int = 0
    most: int = 0
    users: Counter[int] = field(default_factory=Counter)

    def hold(self, storage: int, num_bytes: int) -> None:
        """One more saved tensor in that storage."""
        if self.users[storage] == 0:
            self.now += num_bytes
            self.most = max(self.most, self.now)
        self.users[storage] += 1

    def drop(self, storage: int, num_bytes: int) -> None:
        """One fewer; the storage counts until the last one is gone."""
        self.users[storage] -= 1
        if self.users[storage] == 0:
            self.now -= num_bytes


class _Held:
    """A saved tensor, for as long as the graph needs it."""

    def __init__(self, tensor: Tensor, saved: SavedBytes) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self._saved = tensor, saved
        self._key, self._num_bytes = storage.data_ptr(), storage.nbytes()
        saved.hold(self._key, self._num_bytes)

    def __del__(self) -> None:
        self._saved.drop(self._key, self._num_bytes)


@contextmanager
def counting_saved_bytes(model: torch.nn.Module) -> Iterator[SavedBytes]:
    """Counts while the block runs; `model`'s parameters are not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = SavedBytes()

    def pack(tensor: Tensor) -> Tensor | _Held:
        is_weight = tensor.untyped_storage().data_ptr() in weights
        return tensor if is_weight else _Held(tensor, saved)

    def unpack(packed: Tensor | _Held) -> Tensor:
        return packed.tensor if isinstance(packed, _Held) else packed

    with saved_tensors_hooks(pack, unpack):
        yield saved
