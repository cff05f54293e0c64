"""Files of a folder, each checked against the manifest before it is used; the next one is hashed meanwhile."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from megatron_moe_grpo.conversion.manifest import NAME, read_manifest, verify_content, verify_size
from megatron_moe_grpo.errors import CheckpointError


class CheckedFiles:
    """Hashing takes as long as reading, and releases Python's lock: a reader waits for its first file only.

    Sizes are compared at once, contents when `require` asks.
    """

    def __init__(self, folder: Path):
        """
        Raises:
            CheckpointError: the manifest or a file that it names is missing, or a file has another size.
        """
        self._folder, self._entries = folder, read_manifest(folder)
        self.names = list(self._entries)
        for name, entry in self._entries.items():
            verify_size(folder, name, entry)
        self._hashing = ThreadPoolExecutor(max_workers=1)
        self._verdicts: dict[str, Future] = {}

    def require(self, name: str, following: Sequence[str] = ()) -> None:
        """Returns when the file of that name is known to be whole; begins with the first unknown of `following`.

        Raises:
            CheckpointError: the file has changed, or the manifest does not know it.
        """
        self._begin(name)
        unknown = [later for later in following if later not in self._verdicts]
        if unknown:
            self._begin(unknown[0])
        self._verdicts[name].result()

    def _begin(self, name: str) -> None:
        if name not in self._entries:
            raise CheckpointError(
                f"{self._folder / name} is not the file that was written",
                got=f"a file that {NAME} does not name",
                expected=f"one of its {len(self._entries)} files",
                remedy="copy the whole checkpoint again",
            )
        if name not in self._verdicts:
            self._verdicts[name] = self._hashing.submit(verify_content, self._folder, name, self._entries[name])
