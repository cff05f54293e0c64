"""Pictures of all kinds, whole and hostile: each one is shown as Pillow shows it, or refused, without much memory."""

import base64
import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError
from megatron_moe_grpo.serving.request_images import decode_images

LIMITS = Limits(max_image_pixels=1 << 20)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
FRAMES = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in range(0, 200, 50)]


def saved(picture: Image.Image, file_format: str, **settings: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, file_format, **settings)
    return content.getvalue()


def noise(mode: str, size: tuple[int, int] = (20, 10)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise("RGB"), "JPEG", exif=exif)


def with_header_size(content: bytes, width: int, height: int) -> bytes:
    """A PNG whose header lies about its size."""
    return content[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:]


PNG = saved(noise("RGB"), "PNG")
SHOWN = {
    "png": PNG,
    "jpeg": saved(noise("RGB"), "JPEG"),
    "webp": saved(noise("RGB"), "WEBP"),
    "bmp": saved(noise("RGB"), "BMP"),
    "grey": saved(noise("L"), "PNG"),
    "black and white": saved(noise("1"), "PNG"),
    "alpha": saved(noise("RGBA"), "PNG"),
    "grey alpha": saved(noise("LA"), "PNG"),
    "cmyk": saved(noise("CMYK"), "JPEG"),
    "palette": saved(noise("RGB").quantize(8), "PNG"),
    "16 bit": saved(Image.fromarray(np.full((10, 20), 40_000, np.uint16)), "PNG"),
    "turned": turned(),
    "one pixel": saved(noise("RGB", (1, 1)), "PNG"),
    "one column": saved(noise("RGB", (1, 20_000)), "PNG"),
    "progressive": saved(noise("RGB"), "JPEG", progressive=True),
    "something behind": PNG + b"<script>" * 50,
}
REFUSED = {
    "gif": saved(noise("RGB"), "GIF"),
    "tiff": saved(noise("RGB"), "TIFF"),
    "ico": saved(noise("RGB", (16, 16)), "ICO"),
    "svg": SVG,
    "pdf": saved(noise("RGB"), "PDF"),
    "ppm": saved(noise("RGB"), "PPM"),
    "eps": saved(noise("RGB"), "EPS"),
    "animated png": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "animated webp": saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "animated gif": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "nothing": b"",
    "text": b"hello",
    "html": b"<html></html>",
    "pickle": b"\x80\x04N.",
    "half a png": PNG[: len(PNG) // 2],
    "half a jpeg": SHOWN["jpeg"][: len(SHOWN["jpeg"]) // 2],
    "only a header": PNG[:33],
    "no width": with_header_size(PNG, 0, 10),
    "too large": with_header_size(PNG, 40_000, 40_000),
    "above the limit": saved(noise("L", (1025, 1024)), "PNG"),
    "65,535 wide": saved(Image.new("1", (65_535, 17)), "PNG"),
    "behind a comment": b"<!-- -->" + PNG,
}


def decode(content: bytes) -> Image.Image:
    (visual,) = decode_images(["data:image/png;base64," + base64.b64encode(content).decode()], LIMITS, None)
    return visual.frames[0]


@pytest.mark.parametrize("name", SHOWN)
def test_pictures_that_are_shown(name: str) -> None:
    seen = decode(SHOWN[name])
    assert seen.mode == "RGB"
    if name == "turned":
        assert seen.size == (10, 20)
    elif name == "16 bit":
        assert set(np.asarray(seen).flatten().tolist()) == {40_000 >> 8}
    else:
        expected = Image.open(io.BytesIO(SHOWN[name])).convert("RGB")
        assert np.array_equal(np.asarray(seen), np.asarray(expected))


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_refused_quickly_and_without_memory(name: str) -> None:
    tracemalloc.start()
    started_s = time.monotonic()
    with pytest.raises(RequestError) as caught:
        decode(REFUSED[name])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.status in (400, 413)
    assert time.monotonic() - started_s < 1.0
    assert peak_bytes < 64e6
