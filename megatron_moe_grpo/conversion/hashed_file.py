"""A new file that is hashed, and sent on its way to the disk, while it is written."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

# Left alone, Linux starts writing to the disk when a tenth of the memory is dirty: a model may fit into less.
FLUSH_BYTES = 64 * 2**20
# Stays in the core's cache; 4 MB measured slower.  What is left to hash at the end is waited for.
HASH_BYTES = 2**20
WRITE_BYTES = 2**20


class HashedFile(AbstractContextManager["HashedFile"]):
    """Takes bytes in order.  When the `with` ends without an error, they are on the disk and `sha256` is there.

    Hashing costs as much as writing; both leave Python's lock, so they go on side by side.  The hashing thread reads
    what was written out of the page cache: were it given the blocks themselves, each would stay in memory for longer,
    and the allocator made ten of the two that were alive.

    Raises FileExistsError if there is a file of that name.
    """

    def __init__(self, path: Path):
        self.sha256 = ""
        self._file = path.open("x+b", buffering=0)
        self._digest, self._block = hashlib.sha256(), memoryview(bytearray(HASH_BYTES))
        self._hashing, self._flushing = ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor(max_workers=1)
        self._num_bytes, self._num_given_bytes, self._num_hashed_bytes, self._num_sent_bytes = 0, 0, 0, 0
        self._work: list[Future] = []

    def write(self, block: bytes | memoryview) -> None:
        """Appends a block."""
        rest = memoryview(block)
        while len(rest) > 0:
            # A call keeps the file locked: the other threads wait, and long waits cost CPU time (6 MB at once: + 0.5 s
            # for 2 GB).
            num_written = self._file.write(rest[:WRITE_BYTES])
            rest = rest[num_written:]
            self._num_bytes += num_written
        if self._num_bytes - self._num_given_bytes >= HASH_BYTES:
            self._num_given_bytes = self._num_bytes
            self._work.append(self._hashing.submit(self._hash_up_to, self._num_bytes))
        if self._num_bytes - self._num_sent_bytes >= FLUSH_BYTES:
            self._num_sent_bytes = self._num_bytes
            self._work.append(self._flushing.submit(os.fdatasync, self._file.fileno()))

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Waits for hash and disk, and closes; whoever writes the next file meanwhile waits less."""
        try:
            for work in self._work:
                work.result()
            self._hash_up_to(self._num_bytes)
            os.fsync(self._file.fileno())
            self.sha256 = self._digest.hexdigest()
        finally:
            self._hashing.shutdown()
            self._flushing.shutdown()
            self._file.close()

    def _hash_up_to(self, end: int) -> None:
        while self._num_hashed_bytes < end:
            block = self._block[: end - self._num_hashed_bytes]
            num_read = os.preadv(self._file.fileno(), [block], self._num_hashed_bytes)
            self._digest.update(block[:num_read])
            self._num_hashed_bytes += num_read
