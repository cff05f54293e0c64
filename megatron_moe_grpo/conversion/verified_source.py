"""A source whose folder is checked against its manifest while it is read; the last tensor waits for the verdict."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from megatron_moe_grpo.conversion.manifest import NAME, verify_manifest
from megatron_moe_grpo.conversion.tensor_source import TensorSource


class _VerifiedSource:
    """Gives the last tensor that was not read yet only after `verdict` is there, so no reader finishes before it."""

    def __init__(self, source: TensorSource, verdict: Future):
        self._source, self._verdict, self._unread = source, verdict, set(source.shapes)
        self.shapes, self.dtypes = source.shapes, source.dtypes

    def read(self, name: str) -> Tensor:
        self._unread.discard(name)
        if not self._unread or self._verdict.done():
            self._verdict.result()
        return self._source.read(name)


@contextmanager
def verified(source: TensorSource, folder: Path) -> Iterator[TensorSource]:
    """`source`, whose files lie in `folder`; unchanged if the folder has no manifest.

    The files are hashed in a thread of their own beside the reading, so each comes from the disk once and the other
    time from the page cache.

    Raises:
        CheckpointError: from a `read`, at the last tensor at the latest: a file is missing, shorter, or changed.
    """
    if not (folder / NAME).is_file():
        yield source
        return
    with ThreadPoolExecutor(max_workers=1) as hashing:
        yield _VerifiedSource(source, hashing.submit(verify_manifest, folder))
