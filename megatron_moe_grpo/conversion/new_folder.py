"""A folder that appears whole or not at all, and only where the disk has room for it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_moe_grpo.errors import ConversionError

# Headers, indexes, manifests and the file system's own blocks.
MARGIN_BYTES = 32 * 2**20


@contextmanager
def new_folder(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Gives a hidden folder beside `folder`, to be filled; it gets its name when the block ends without an error.

    What a killed process left of an earlier try is removed first; a kill at any moment leaves no `folder`.

    Args:
        num_bytes: what will be written; the disk must have room for it before anything is.
    Raises:
        ConversionError: `folder` exists already, or the disk is too full.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    refuse_full_disk(folder.parent, num_bytes)
    unfinished.mkdir()
    try:
        yield unfinished
        sync_folder(unfinished)
        os.rename(unfinished, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raises ConversionError if `folder` exists: nothing is ever overwritten."""
    if folder.exists():
        raise ConversionError("The output folder exists already.", got=folder, remedy="remove it or name another one")


def refuse_full_disk(folder: Path, num_bytes: int) -> None:
    """Raises ConversionError if fewer than `num_bytes` and a small margin are free where `folder` stands."""
    free_bytes, needed_bytes = shutil.disk_usage(folder).free, num_bytes + MARGIN_BYTES
    if free_bytes < needed_bytes:
        raise ConversionError(
            "The disk has not enough room.",
            got=f"{free_bytes:,} bytes free where {folder} stands",
            expected=f"at least {needed_bytes:,} bytes",
            remedy="free some space, or name an output folder on another disk",
        )


def sync_folder(folder: Path) -> None:
    """Flushes the folder's own list of names to disk; its files are flushed by who writes them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
