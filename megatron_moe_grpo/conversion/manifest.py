"""SHA-256 of every file of a folder: no checkpoint format detects a flipped bit by itself."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from megatron_moe_grpo.errors import DamagedCheckpointError

NAME = "manifest.json"
# Stays in the core's cache; smaller ones wait for Python's lock more often (256 KB and 4 MB measured slower).
BLOCK_BYTES = 2**20
NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})
REMEDY = (
    "a checkpoint of a run: delete this folder to go on from the one before it; "
    "an imported, exported or downloaded model: make or copy it again, or delete manifest.json if the change was meant"
)
# What a model is made of: such a file that the manifest does not list would be used unseen.
USED_SUFFIXES = (".json", ".jinja", ".safetensors", ".distcp", ".pt", ".metadata")


class Entry(NamedTuple):
    """What the manifest says of a file."""

    num_bytes: int
    sha256: str


def write_manifest(folder: Path, known_digests: Mapping[str, str] = NOTHING_KNOWN) -> None:
    """Writes `manifest.json` beside the files it lists, and flushes all of them to disk.

    Args:
        known_digests: path inside `folder` -> SHA-256, of files that were hashed while they were written.
    """
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": known_digests.get(name) or sha256_of(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    manifest = folder / NAME
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    with manifest.open("rb") as file:
        os.fsync(file.fileno())


def verify_manifest(folder: Path, on_block: Callable[[], None] = lambda: None) -> None:
    """Raises DamagedCheckpointError with the name of the first file that is missing, shorter, or changed.

    Args:
        on_block: called before each block is hashed; what it raises ends the work.
    """
    verify_share(folder, 0, 1, on_block)


def verify_share(folder: Path, number: int, num_shares: int, on_block: Callable[[], None] = lambda: None) -> None:
    """`verify_manifest` of the files whose turn it is: several processes share the work, the large files evenly."""
    entries = read_manifest(folder)
    names = sorted(entries, key=lambda name: (entries[name].num_bytes, name))
    for name in names[number::num_shares]:
        verify_size(folder, name, entries[name])
        verify_content(folder, name, entries[name], on_block)


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Path inside `folder` -> what is known of the file.

    Raises:
        DamagedCheckpointError: there is no manifest, it cannot be read, or the folder holds files of a model that it
            lacks.
    """
    manifest = folder / NAME
    if not manifest.is_file():
        raise DamagedCheckpointError(
            f"{folder} is not a complete checkpoint",
            got=f"no {NAME}",
            expected=f"a folder that ends with {NAME}",
            remedy=REMEDY,
        )
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        entries = {name: Entry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"{manifest} is damaged", got=f"{type(error).__name__}: {error}", remedy=REMEDY
        ) from error
    _refuse_unlisted(folder, entries)
    return entries


def _refuse_unlisted(folder: Path, entries: Mapping[str, Entry]) -> None:
    """A person's notes may lie beside a model; a chat template or a shard that came later may not."""
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    unlisted = [name for name in names if name not in entries and name.endswith(USED_SUFFIXES)]
    if unlisted:
        raise DamagedCheckpointError(
            f"{folder} holds files that it was not written with",
            got=", ".join(unlisted[:5]),
            expected=f"the files that {NAME} lists",
            remedy=REMEDY,
        )


def verify_size(folder: Path, name: str, entry: Entry) -> None:
    """Raises DamagedCheckpointError if the file is missing, or longer or shorter than it was."""
    path = folder / name
    if not path.is_file():
        raise DamagedCheckpointError(
            f"{folder} lacks a file", got=f"no {name}", expected="all files of its manifest", remedy=REMEDY
        )
    if path.stat().st_size != entry.num_bytes:
        raise DamagedCheckpointError(
            f"{path} has the wrong size",
            got=f"{path.stat().st_size} bytes",
            expected=f"{entry.num_bytes} bytes",
            remedy=REMEDY,
        )


def verify_content(folder: Path, name: str, entry: Entry, on_block: Callable[[], None] = lambda: None) -> None:
    """Raises DamagedCheckpointError if the file's bytes are not those that were written; `on_block` as above."""
    try:
        digest = sha256_of(folder / name, on_block)
    except OSError as error:
        raise DamagedCheckpointError(
            f"{folder / name} cannot be read", got=f"{type(error).__name__}: {error}", remedy=REMEDY
        ) from error
    if digest != entry.sha256:
        raise DamagedCheckpointError(
            f"{folder / name} has changed since it was written",
            got=f"sha256 {digest[:16]}…",
            expected=f"sha256 {entry.sha256[:16]}…",
            remedy=REMEDY,
        )


def sha256_of(path: Path, on_block: Callable[[], None] = lambda: None) -> str:
    # One buffer for all blocks: with new memory for each, the kernel clears as much again as is read.
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_read := file.readinto(block):
            on_block()
            digest.update(block[:num_read])
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
