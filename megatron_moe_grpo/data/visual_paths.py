"""From the path in a row to a regular file inside the image root, or a DataError.

Rows come from outside, so a path may not reach any file but those of the image root: links are followed before the
test, and nothing is opened here (a FIFO or a device would hang or never end).
"""

import stat
from pathlib import Path
from typing import Literal

from megatron_moe_grpo.data.row_place import RowPlace, shown

MAX_PATH_CHARACTERS = 1024
EXPECTED_FILE = {"image": "a PNG, JPEG, WEBP or BMP file", "video": "a video file, or pictures that are its frames"}


def resolve_visual_path(text: str, image_root: Path, place: RowPlace, kind: Literal["image", "video"]) -> Path:
    """The real path of `text`, relative to `image_root`; an absolute path inside the root is accepted too.

    `kind` is the field that complaints name; a frame of a video is of kind `video`.
    Raises DataError: empty, NUL, overlong, a URL, outside the root (`..`, absolute, link), missing, not a regular file.
    """
    if not text or "\0" in text or len(text) > MAX_PATH_CHARACTERS:
        raise place.problem(
            kind,
            "not a usable path",
            got=shown(text),
            expected=f"1 to {MAX_PATH_CHARACTERS} characters, none of them NUL",
        )
    if "://" in text or text.startswith("data:"):
        raise place.problem(
            kind,
            "URLs and inline data are not read",
            got=shown(text),
            remedy="store it as a file under the image root and give its path",
        )
    root = image_root.resolve()
    try:
        path = (root / text).resolve()
        # Before anything about the file is revealed, so that an outside file cannot be told from a missing one.
        if not path.is_relative_to(root):
            raise place.problem(
                kind,
                "the path leaves the image root",
                got=shown(text),
                expected=f"a path inside {root}",
                remedy="copy the files there, or point data.image_root at the folder that holds them",
            )
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise place.problem(
            kind, f"the {kind} file does not exist", got=str(path), remedy="check data.image_root, or drop the row"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise place.problem(kind, f"the path cannot be followed: {type(error).__name__}", got=shown(text)) from error
    if not stat.S_ISREG(mode):
        raise place.problem(kind, "not a regular file", got=str(path), expected=EXPECTED_FILE[kind])
    return path
