import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from megatron_moe_grpo.data.images import MAX_PIXELS, read_image, read_image_size
from megatron_moe_grpo.errors import DataError

RAMP = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24).astype(np.uint8))


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
    + [("WEBP", mode) for mode in ("L", "RGB", "RGBA")]
    + [("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
)
def test_read_image_gives_rgb_from_every_mode(tmp_path: Path, image_format: str, mode: str) -> None:
    path = tmp_path / "picture"
    RAMP.convert(mode).save(path, image_format)
    picture = read_image(path)
    assert (picture.mode, picture.size) == ("RGB", (24, 16))
    assert read_image_size(path) == (24, 16)


def test_read_image_drops_alpha_and_keeps_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (10, 20, 30)


def test_read_image_keeps_the_high_byte_of_16_bit_grey(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    picture = read_image(tmp_path / "deep.png")
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_read_image_turns_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees clockwise
    RAMP.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.size == (16, 24)
    assert turned.getpixel((15, 0)) == RAMP.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_read_image_size_is_that_of_the_turned_picture(tmp_path: Path, image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation  # 1 to 8 are defined, 5 to 8 swap width and height
    RAMP.save(tmp_path / "turned", image_format, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(tmp_path / "turned"))
    assert read_image_size(tmp_path / "turned") == turned.size == read_image(tmp_path / "turned").size


def test_read_image_size_sees_exif_behind_the_pixels_and_in_xmp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    RAMP.save(tmp_path / "before.png", exif=exif)
    content = (tmp_path / "before.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    iend = content.index(b"IEND") - 4
    (tmp_path / "behind.png").write_bytes(content[:start] + content[end:iend] + content[start:end] + content[iend:])
    RAMP.save(tmp_path / "xmp.jpg", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    for name in ("behind.png", "xmp.jpg"):
        assert read_image(tmp_path / name).size == read_image_size(tmp_path / name) == (16, 24), name


def _write_bad_files(folder: Path) -> None:
    RAMP.save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"<html>not found</html>")
    (folder / "drawing.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "flipped.png").write_bytes(whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:])
    RAMP.save(folder / "other.gif")
    RAMP.save(folder / "other.tiff")
    Image.new("1", (10_000, 8_900)).save(folder / "bomb.png")
    Image.new("1", (16_384, 16_384)).save(folder / "large_bomb.png")
    RAMP.save(folder / "animated.webp", save_all=True, append_images=[RAMP.rotate(180)])
    RAMP.save(folder / "animated.png", save_all=True, append_images=[RAMP.rotate(180)])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")


BAD_FILES = {
    "truncated.png": "cannot be decoded",
    "empty.png": "cannot be decoded",
    "text.png": "cannot be decoded",
    "drawing.svg": "cannot be decoded",
    "flipped.png": "cannot be decoded",
    "other.gif": "cannot be decoded",
    "other.tiff": "cannot be decoded",
    "bomb.png": "too large",
    "large_bomb.png": "cannot be decoded",
    "animated.webp": "animated",
    "animated.png": "animated",
    "folder.png": "not a file",
    "fifo.png": "not a file",
    "missing.png": "not a file",
}


# Pillow warns between 89 and 179 megapixels, then this package refuses the picture.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_read_image_refuses_and_names_bad_files(tmp_path: Path) -> None:
    _write_bad_files(tmp_path)
    for name, message in BAD_FILES.items():
        with pytest.raises(DataError, match=message) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value), name


def test_read_image_limit_is_on_pixels(tmp_path: Path) -> None:
    Image.new("1", (MAX_PIXELS // 8, 8)).save(tmp_path / "largest.png")
    Image.new("1", (MAX_PIXELS // 8 + 1, 8)).save(tmp_path / "larger.png")
    read_image(tmp_path / "largest.png")
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "larger.png")
