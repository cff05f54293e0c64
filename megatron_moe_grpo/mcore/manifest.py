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
    remedy = "use another checkpoint of the run, or convert the model again"
    manifest = folder / NAME
    if not manifest.is_file():
        raise CheckpointError(
            f"{folder} is not a complete checkpoint", got=f"no {NAME}",
            expected=f"a folder that ends with {NAME}", remedy=remedy,
        )
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged", got=str(error), remedy=remedy) from error
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks a file", got=f"no {name}", expected="all files of its manifest",
                                  remedy=remedy)
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{path} has the wrong size", got=f"{path.stat().st_size} bytes",
                                  expected=f"{entry['bytes']} bytes", remedy=remedy)
        digest = _sha256(path)
        if digest != entry["sha256"]:
            raise CheckpointError(f"{path} has changed since it was written", got=f"sha256 {digest[:16]}…",
                                  expected=f"sha256 {entry['sha256'][:16]}…", remedy=remedy)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
