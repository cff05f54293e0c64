"""Several JSONL files as one, to start a model on several tasks: the rows in turn, the pictures left where they are."""

import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import DataError


def mix_rows(sources: Sequence[Path], out: Path) -> int:
    """Writes the first row of every source, then the second, ...; returns the number of rows.

    A row's id gets its source's number in front ("0-train-00000"), its picture's path starts from the folder of `out`,
    as readers expect; so `out` must stand in a folder that all pictures lie under.
    Raises:
        DataError: fewer than two sources, `out` exists, or a source lies outside its folder.
    """
    root = out.parent.resolve()
    outside = [str(source) for source in sources if not source.resolve().is_relative_to(root)]
    if len(sources) < 2 or outside or out.exists():
        raise DataError(
            "the files cannot be mixed",
            got=f"{len(sources)} sources, outside {root}: {', '.join(outside) or 'none'}, {out} exists: {out.exists()}",
            expected="two or more files under the folder of the new one, which must not exist",
        )
    texts = [source.read_text(encoding="utf-8").splitlines() for source in sources]
    rows = [
        _moved(json.loads(line), number, os.path.relpath(sources[number].resolve().parent, root))
        for lines in zip_longest(*texts)
        for number, line in enumerate(lines)
        if line is not None
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return len(rows)


def _moved(row: dict[str, Any], number: int, folder: str) -> dict[str, Any]:
    return {**row, "id": f"{number}-{row['id']}", "image": f"{folder}/{row['image']}"}
