"""A source whose folder is checked against its manifest while it is read; the last tensor waits for the verdict."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from megatron_moe_grpo.conversion.manifest import NAME, verify_manifest
from megatron_moe_grpo.conversion.tensor_source import TensorSource


class _VerifiedSource:
    """Gives the last tensor that was not read yet only after the verdict is there, so no reader finishes before it."""

    def __init__(self, source: TensorSource, folder: Path):
        self._source, self._folder, self._unread = source, folder, set(source.shapes)
        self._hashing, self._is_stopped = ThreadPoolExecutor(max_workers=1), threading.Event()
        self._verdict: Future | None = None
        self.shapes, self.dtypes = source.shapes, source.dtypes

    def read(self, name: str) -> Tensor:
        # Not before: a source that does not fit is refused without reading it.
        if self._verdict is None:
            self._verdict = self._hashing.submit(verify_manifest, self._folder, self._raise_if_stopped)
        self._unread.discard(name)
        if not self._unread or self._verdict.done():
            self._verdict.result()
        return self._source.read(name)

    def stop(self) -> None:
        """Ends the hashing after the block that it is at."""
        self._is_stopped.set()
        self._hashing.shutdown()

    def _raise_if_stopped(self) -> None:
        if self._is_stopped.is_set():
            raise CancelledError


@contextmanager
def verified(source: TensorSource, folder: Path) -> Iterator[TensorSource]:
    """`source`, whose files lie in `folder`; unchanged if the folder has no manifest.

    The files are hashed in a thread of their own beside the reading, so each comes from the disk once and the other
    time from the page cache.  A reader that fails, or leaves early, does not wait for it.

    Raises:
        CheckpointError: from a `read`, at the last tensor at the latest: a file is missing, shorter, or changed.
    """
    if not (folder / NAME).is_file():
        yield source
        return
    checked = _VerifiedSource(source, folder)
    try:
        yield checked
    finally:
        checked.stop()
