"""Pictures in requests: what is decoded, and that sizes are refused before memory is spent."""

import base64
import io
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError
from megatron_moe_grpo.serving.request_images import decode_images

LIMITS = Limits(max_images=3, max_image_bytes=20_000, max_image_pixels=10_000, max_request_pixels=15_000)


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(width: int = 20, height: int = 10, file_format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(content, file_format)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A black-and-white PNG of any size in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_decode_images_reads_data_uris(file_format: str) -> None:
    (visual,) = decode_images([uri(picture(file_format=file_format), file_format.lower())], LIMITS, None)
    assert (visual.size.width, visual.size.height, visual.is_video) == (20, 10, False)
    assert visual.frames[0].getpixel((3, 3))[0] > 250


def test_a_bomb_is_refused_by_its_header() -> None:
    content = bomb(10_000, 8_900)
    assert len(content) < 20_000
    tracemalloc.start()
    with pytest.raises(RequestError, match="too large"):
        decode_images([uri(content)], LIMITS, None)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1e6


def test_all_pictures_together_are_limited() -> None:
    decode_images([uri(picture(100, 70))] * 2, LIMITS, None)
    with pytest.raises(RequestError, match="together") as caught:
        decode_images([uri(picture(100, 80))] * 2, LIMITS, None)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([uri(picture())] * 4, "4 images"),
        ([uri(b"x" * 20_001)], "more than 20000 bytes"),
        ([uri(b"no picture")], "cannot be decoded"),
        ([uri(picture()[:50])], "cannot be decoded"),
        (["data:image/png;base64,???"], "not base64"),
        (["data:text/html;base64,AAAA"], "data URIs"),
        (["data:image/png,AAAA"], "data URIs"),
        (["https://example.org/a.png"], "data URIs"),
        (["file:///etc/passwd"], "data URIs"),
        ([uri(picture(file_format="GIF"), "gif")], "cannot be decoded"),
        ([""], "data URIs"),
    ],
)
def test_pictures_that_are_refused(urls: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode_images(urls, LIMITS, None)
