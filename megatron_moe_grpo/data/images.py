"""From a file to an RGB picture, with the guards a user's file needs.

Pillow alone opens a 22 kB PNG that unpacks to 500 MB, and picks among some thirty decoders; both are closed here.
Alpha is dropped, not blended: the Hugging Face processors of these models do so, and an exported model must see the
same picture as the trained one.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from megatron_moe_grpo.errors import DataError

MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# The four of EXIF's eight orientations that swap width and height.
TURNING_ORIENTATIONS = (5, 6, 7, 8)
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")

# What Pillow 13 raises on damaged files of the four formats.  24,000 files with flipped bytes gave OSError (98 %),
# DecompressionBombError, SyntaxError, ValueError, struct.error and TypeError (damaged EXIF); the rest are their kin.
DECODE_ERRORS = (
    OSError,
    Image.DecompressionBombError,
    SyntaxError,
    ValueError,
    struct.error,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
)


def read_image(path: Path) -> Image.Image:
    """The picture as RGB, turned as its EXIF tag says; 16-bit grey keeps its high byte.

    Raises:
        DataError: names the path; not one of the four formats, above 16.8 megapixels, more than one frame, truncated
            or damaged.
    """
    with _usable(path, str(path), MAX_PIXELS) as image:
        return _decoded(image)


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `read_image`, of a file's bytes; `name` is what errors call it."""
    with _usable(io.BytesIO(content), name, max_pixels) as image:
        return _decoded(image)


def size_of_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """As `read_image_size`, of a file's bytes."""
    with _usable(io.BytesIO(content), name, max_pixels) as image:
        return _seen_size(image)


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture that `read_image` gives, from its header; raises DataError as far as that tells.

    Pillow decodes a PNG without EXIF data all the same: it may stand behind the pixels.
    """
    with _usable(path, str(path), MAX_PIXELS) as image:
        return _seen_size(image)


def is_picture(path: Path) -> bool:
    """Whether the file begins like one of the four formats, whatever its name."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except DECODE_ERRORS:
        return True  # one of the formats, damaged: `read_image` names it


@contextmanager
def _usable(source: Path | io.BytesIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture, its header read and found usable; what Pillow raises inside the block becomes a DataError."""
    try:
        if isinstance(source, Path) and not source.is_file():
            raise DataError(f"{name} is not a file that can be read")
        with Image.open(source, formats=FORMATS) as image:
            _refuse_unusable(image, name, max_pixels)
            yield image
    except DECODE_ERRORS as error:
        raise DataError(
            f"the image {name} cannot be decoded",
            got=f"{type(error).__name__}: {error}",
            expected=f"a whole {', '.join(FORMATS)} file",
            remedy="replace the file, or skip the row",
        ) from error


def _refuse_unusable(image: Image.Image, name: str, max_pixels: int) -> None:
    """Looks at the header only, before memory is spent."""
    if image.width * image.height > max_pixels:
        raise DataError(
            f"the image {name} is too large",
            got=f"{image.width} x {image.height} pixels",
            expected=f"at most {max_pixels} pixels",
            remedy="scale it down, or skip the row",
        )
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
        return
    raise DataError(f"the image {name} is animated", expected="one frame", remedy="store the frames as pictures")


def _seen_size(image: Image.Image) -> tuple[int, int]:
    is_turned = image.getexif().get(ExifTags.Base.Orientation) in TURNING_ORIENTATIONS
    return image.size[::-1] if is_turned else image.size


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        # Pillow's own conversion clips at 255 and turns nearly all of a 16-bit picture white.
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")
