"""Small files that are never half written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """The whole text or the old file, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
