"""From the path in a row to a regular file inside the image root, or a DataError.

Rows come from outside, so a path may not reach any file but those of the image root: links are followed before the
test, and nothing is opened here (a FIFO or a device would hang or never end).
"""

import stat
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown

MAX_PATH_CHARACTERS = 1024


def resolve_image_path(text: str, image_root: Path, place: RowPlace) -> Path:
    """The real path of `text`, relative to `image_root`; an absolute path inside the root is accepted too.

    Raises DataError: empty, NUL, overlong, a URL, outside the root (`..`, absolute, link), missing, not a regular file.
    """
    if not text or "\0" in text or len(text) > MAX_PATH_CHARACTERS:
        raise place.problem(
            "image",
            "not a usable path",
            got=shown(text),
            expected=f"1 to {MAX_PATH_CHARACTERS} characters, none of them NUL",
        )
    if "://" in text or text.startswith("data:"):
        raise place.problem(
            "image",
            "URLs and inline data are not read",
            got=shown(text),
            remedy="store the picture as a file under the image root and give its path",
        )
    root = image_root.resolve()
    try:
        path = (root / text).resolve()
        # Before anything about the file is revealed, so that an outside file cannot be told from a missing one.
        if not path.is_relative_to(root):
            raise place.problem(
                "image",
                "the path leaves the image root",
                got=shown(text),
                expected=f"a path inside {root}",
                remedy="copy the pictures there, or point data.image_root at the folder that holds them",
            )
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise place.problem(
            "image", "the image file does not exist", got=str(path), remedy="check data.image_root, or drop the row"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise place.problem("image", f"the path cannot be followed: {type(error).__name__}", got=shown(text)) from error
    if not stat.S_ISREG(mode):
        raise place.problem("image", "not a regular file", got=str(path), expected="a PNG, JPEG, WEBP or BMP file")
    return path
