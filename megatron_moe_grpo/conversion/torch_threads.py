"""How many threads torch copies with while weights are streamed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Copies within on one thread, and gives torch its threads back; a decorator, too.

    After each copy that OpenMP shared out, its other threads spin for a while in case there is more to do.  Here that
    takes the cores from hashing: measured on two, a fifth of the time of an import (LOG.md, 2026-11-25).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
