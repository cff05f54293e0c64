"""A picture of a row, wherever it lies: a path, or bytes inside the row, which are written to the image cache once.

Rows hold paths and nothing else, so a picture that came as bytes becomes a file named by its SHA-256 under
`$XDG_CACHE_HOME/megatron-moe-grpo/images` (`~/.cache/...`); every node of a run must see the same folder.
"""

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from megatron_moe_grpo.data.images import read_image_size
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import as_texts
from megatron_moe_grpo.data.visual_paths import resolve_visual_path
from megatron_moe_grpo.errors import DataError

# A PNG of noise at the most pixels that `images.py` reads has 50 MB.
MAX_IMAGE_BYTES = 64 * 2**20
# ms-swift writes image/jpg.
DATA_URI = re.compile(r"data:image/(?:png|jpe?g|webp|bmp);base64,", re.IGNORECASE)
MAX_URI_START = 40


def locate_image(value: object, image_root: Path, place: RowPlace) -> Path:
    """The file of one picture: a path under `image_root`, "data:image/png;base64,...", bytes, or {bytes, path}.

    Raises DataError: of another type, a bad path, wrong MIME type, bad base64, too many bytes, not a picture.
    """
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        # `datasets` keeps the name of the file that the bytes came from; it lies on someone else's disk.
        value = path if content is None else content
    if isinstance(value, bytes):
        return store_image(value, place)
    if not isinstance(value, str):
        raise place.problem(
            "image",
            "wrong type",
            got=f"{type(value).__name__} {shown(value)}",
            expected='a path, "data:image/png;base64,...", or bytes',
        )
    as_texts([value], "image", place)
    if value[:5].lower() == "data:":
        return store_image(_data_uri_content(value, place), place)
    return resolve_visual_path(value, image_root, place, "image")


def base64_content(text: str, place: RowPlace) -> bytes:
    """The bytes of a picture in base64.  Raises DataError: too long, or not base64."""
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise _too_large(len(text) * 3 // 4, place)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise place.problem("image", "not base64", got=f"{shown(text[:40])}: {error}") from error


def store_image(content: bytes, place: RowPlace) -> Path:
    """The cache's file of these bytes, written if it is not there; its header is checked first.

    Raises DataError: too many bytes, or what `read_image_size` refuses (not one of the formats, too many pixels).
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise _too_large(len(content), place)
    digest = hashlib.sha256(content).hexdigest()
    file = image_cache() / digest[:2] / digest
    if file.is_file() and file.stat().st_size == len(content):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix="unfinished-", dir=file.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as written:
            written.write(content)
        read_image_size(unfinished)
        unfinished.rename(file)
    except DataError as error:
        raise place.problem(
            "image",
            error.what.replace(name, "inside the row"),
            got=None if error.got is None else str(error.got).replace(name, "it"),
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return file


def image_cache() -> Path:
    """Folder of the pictures that came as bytes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-moe-grpo" / "images"


def _data_uri_content(text: str, place: RowPlace) -> bytes:
    start = DATA_URI.match(text)
    if start is None:
        raise place.problem(
            "image",
            "inline data of a type that is not read",
            got=shown(text[:MAX_URI_START]),
            expected="data:image/png;base64, (or jpeg, webp, bmp) and the picture",
        )
    return base64_content(text[start.end() :], place)


def _too_large(num_bytes: int, place: RowPlace) -> DataError:
    return place.problem(
        "image", "the picture has too many bytes", got=num_bytes, expected=f"at most {MAX_IMAGE_BYTES}"
    )
