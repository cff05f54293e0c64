import base64
import hashlib
import os
from pathlib import Path

import pytest
from embedded_pictures import picture_bytes
from PIL import Image

from megatron_moe_grpo.data import embedded_image
from megatron_moe_grpo.data.embedded_image import base64_content, image_cache, locate_image, store_image
from megatron_moe_grpo.data.images import read_image
from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("rows.parquet", 7, "cat")
PNG = picture_bytes()
IN_BASE64 = base64.b64encode(PNG).decode()


def test_store_image_writes_each_picture_once_under_its_sha256(image_cache_folder: Path) -> None:
    assert image_cache() == image_cache_folder
    file = store_image(PNG, PLACE)
    digest = hashlib.sha256(PNG).hexdigest()
    assert file == image_cache_folder / digest[:2] / digest
    assert file.read_bytes() == PNG
    os.utime(file, (1, 1))
    assert store_image(PNG, PLACE) == file
    assert file.stat().st_mtime == 1
    assert [path.name for path in image_cache_folder.rglob("*") if path.is_file()] == [digest]


def test_store_image_writes_a_file_of_another_length_anew() -> None:
    file = store_image(PNG, PLACE)
    file.write_bytes(PNG[:10])
    assert store_image(PNG, PLACE).read_bytes() == PNG


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_store_image_takes_the_four_formats(image_format: str) -> None:
    file = store_image(picture_bytes(200, image_format=image_format, mode="RGB"), PLACE)
    assert read_image(file).size == (8, 8)


BAD_PICTURES = [
    (b"", "the image inside the row cannot be decoded"),
    (b"hello", "the image inside the row cannot be decoded"),
    (picture_bytes(image_format="GIF"), "the image inside the row cannot be decoded"),
    (PNG[:20], "the image inside the row cannot be decoded"),
    # 2 kB that would be 50 MB as RGB; the header is enough.
    (picture_bytes(size=(4096, 4097), mode="1"), "the image inside the row is too large"),
]


@pytest.mark.parametrize(("content", "message"), BAD_PICTURES)
def test_store_image_keeps_no_bad_picture(content: bytes, message: str, image_cache_folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows.parquet:7 \(id 'cat'\), field 'image'") as caught:
        store_image(content, PLACE)
    assert message in str(caught.value)
    assert str(image_cache_folder) not in str(caught.value)
    assert not [path for path in image_cache_folder.rglob("*") if path.is_file()]


def test_too_many_bytes_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_image, "MAX_IMAGE_BYTES", len(PNG) - 1)
    with pytest.raises(DataError, match="too many bytes"):
        store_image(PNG, PLACE)
    with pytest.raises(DataError, match="too many bytes"):
        base64_content("A" * (len(PNG) * 4), PLACE)


def test_locate_image_takes_paths_and_every_kind_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    stored = store_image(PNG, PLACE)
    assert locate_image("1.png", tmp_path, PLACE) == tmp_path / "1.png"
    assert locate_image({"bytes": None, "path": "1.png"}, tmp_path, PLACE) == tmp_path / "1.png"
    for value in (
        PNG,
        {"bytes": PNG, "path": "far/away.png"},
        {"bytes": PNG},
        f"data:image/png;base64,{IN_BASE64}",
        f"data:image/jpg;base64,{IN_BASE64}",  # the bytes tell the format, whatever the type says
        f"DATA:IMAGE/PNG;BASE64,{IN_BASE64}",
    ):
        assert locate_image(value, tmp_path, PLACE) == stored


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "wrong type"),
        (None, "wrong type"),
        ({}, "wrong type"),
        ({"bytes": "text", "path": None}, "does not exist"),
        ("data:text/html;base64,AAAA", "inline data of a type that is not read"),
        ("data:video/jpeg;base64,AAAA", "inline data of a type that is not read"),
        ("data:image/svg+xml;base64,AAAA", "inline data of a type that is not read"),
        (f"data:image/png,{IN_BASE64}", "inline data of a type that is not read"),
        ("data:image/png;base64,AAA", "not base64"),
        ("data:image/png;base64,A*==", "not base64"),
        (f"data:image/png;base64,{IN_BASE64} ", "not base64"),
        ("data:image/png;base64,aGVsbG8=", "cannot be decoded"),
        ("https://example.org/1.png", "URLs"),
        ("../1.png", "leaves the image root"),
    ],
)
def test_locate_image_names_what_is_wrong(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.parquet:7 \(id 'cat'\), field 'image'") as caught:
        locate_image(value, tmp_path, PLACE)
    assert message in str(caught.value)


def test_stored_pictures_are_what_was_brought() -> None:
    file = store_image(picture_bytes(37), PLACE)
    assert read_image(file).tobytes() == Image.new("RGB", (8, 8), (37, 37, 37)).tobytes()
