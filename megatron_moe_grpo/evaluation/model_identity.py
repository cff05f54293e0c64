"""What tells one model's files from another's, so that no answer is taken for another model's."""

import hashlib
from pathlib import Path

from megatron_moe_grpo.conversion.manifest import NAME as MANIFEST


def folder_identity(folder: Path, kind: str) -> dict[str, object]:
    """Path and digest of a model's folder.

    The digest is that of its manifest, which lists the SHA-256 of every file.  A folder without one (downloaded, not
    exported by us) is told by name, size and time of every file: hashing its weights would take minutes.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        digest = hashlib.sha256(manifest.read_bytes())
    else:
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                stat = path.stat()
                name = path.relative_to(folder).as_posix()
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"kind": kind, "model": str(folder.resolve()), "digest": digest.hexdigest()}
