"""Pictures as data URIs, as OpenAI's chat dialect takes them."""

import base64
import io
from pathlib import Path

from PIL import ExifTags, Image

from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.evaluation.asking import AskSettings, seen

# PNG's own measure; level 1 is ten times as fast as the best and 10 % larger.
PNG_LEVEL = 1
UNTURNED = 1


def image_uris(files: VisualFiles, settings: AskSettings, blank_images: bool) -> list[str]:
    """One data URI a picture or frame.

    A JPEG file that shows what its pixels say is sent as it is.  All else becomes a PNG of the pixels that our own
    engine sees: servers differ in how they read other modes, formats and turned pictures.
    Raises DataError: a visual that cannot be read.
    """
    visual = seen(files, settings, blank_images)
    if not files.is_video and not blank_images and _is_plain_jpeg(files.paths[0]):
        return [_uri("jpeg", files.paths[0].read_bytes())]
    return [_uri("png", _png(frame)) for frame in visual.frames]


def _is_plain_jpeg(path: Path) -> bool:
    with Image.open(path) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, UNTURNED) != UNTURNED
        return image.format == "JPEG" and image.mode == "RGB" and not is_turned


def _png(frame: Image.Image) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
