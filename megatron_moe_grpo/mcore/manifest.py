"""SHA-256 of every file of a folder: no checkpoint format detects a flipped bit by itself."""

import hashlib
import json
import os
from pathlib import Path

from megatron_moe_grpo.errors import CheckpointError

NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json` beside the files it lists, and flushes all of them to disk."""
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    manifest = folder / NAME
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    with manifest.open("rb") as file:
        os.fsync(file.fileno())


def verify_manifest(folder: Path) -> None:
    """Raises CheckpointError with the name of the first file that is missing, shorter, or changed."""
    remedy = "delete this folder to go on from the checkpoint before it; an imported model: import it again"
    manifest = folder / NAME
    if not manifest.is_file():
        raise CheckpointError(
            f"{folder} is not a complete checkpoint",
            got=f"no {NAME}",
            expected=f"a folder that ends with {NAME}",
            remedy=remedy,
        )
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{manifest} is damaged", got=f"{type(error).__name__}: {error}", remedy=remedy
        ) from error
    for name, (num_bytes, expected_digest) in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{folder} lacks a file", got=f"no {name}", expected="all files of its manifest", remedy=remedy
            )
        if path.stat().st_size != num_bytes:
            raise CheckpointError(
                f"{path} has the wrong size",
                got=f"{path.stat().st_size} bytes",
                expected=f"{num_bytes} bytes",
                remedy=remedy,
            )
        digest = _sha256(path)
        if digest != expected_digest:
            raise CheckpointError(
                f"{path} has changed since it was written",
                got=f"sha256 {digest[:16]}…",
                expected=f"sha256 {expected_digest[:16]}…",
                remedy=remedy,
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
