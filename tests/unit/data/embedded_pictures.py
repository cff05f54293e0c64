"""Pictures as bytes, as users' files hold them."""

import io

from PIL import Image


def picture_bytes(grey: int = 100, size: tuple[int, int] = (8, 8), image_format: str = "PNG", mode: str = "L") -> bytes:
    """One flat picture, encoded."""
    buffer = io.BytesIO()
    Image.new(mode, size, grey).save(buffer, image_format)
    return buffer.getvalue()
