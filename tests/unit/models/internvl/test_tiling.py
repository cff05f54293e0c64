"""Grids, counts and tiles against transformers' image processor."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from megatron_moe_grpo.models.internvl.tiling import Tiling

# Aspect ratios from 1:13 to 13:1, small and large, and exact ties between two grids.
SIZES = (
    (32, 32), (16, 32), (32, 16), (100, 64), (64, 100), (40, 30), (300, 23), (23, 300), (97, 96), (1, 50), (50, 1),
    (128, 128), (64, 64), (96, 64), (45, 45), (46, 46), (200, 150), (40, 32), (500, 375),
)  # fmt: skip
LIMITS = ((1, 12), (1, 1), (1, 2), (2, 6), (4, 4), (1, 7), (1, 40))


def oracle(min_tiles: int, max_tiles: int) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=min_tiles, max_patches=max_tiles,
        do_rescale=False, do_normalize=False,
    )  # fmt: skip


def random_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("min_tiles", "max_tiles"), LIMITS)
def test_tiles_equal_transformers(min_tiles: int, max_tiles: int) -> None:
    tiling = Tiling(tile_size=(32, 32), min_tiles=min_tiles, max_tiles=max_tiles)
    processor = oracle(min_tiles, max_tiles)
    for width, height in SIZES:
        image = random_image(width, height)
        expected = processor(image, return_tensors="np")
        tiles = [np.asarray(tile).transpose(2, 0, 1) for tile in tiling.cut(image, Image.Resampling.BICUBIC)]
        assert tiling.num_tiles(width, height) == len(tiles) == expected["num_patches"][0]
        assert np.array_equal(np.stack(tiles), expected["pixel_values"])


def test_num_tiles_by_hand() -> None:
    """A 2:1 picture of 4 tiles' area takes 4 x 2 tiles, not 2 x 1: the larger grid until it is twice the picture."""
    tiling = Tiling(tile_size=(10, 10), max_tiles=12)
    assert (tiling.grid(30, 15), tiling.num_tiles(30, 15)) == ((4, 2), 8 + 1)
    assert (tiling.grid(20, 10), tiling.num_tiles(20, 10)) == ((2, 1), 2 + 1)
    assert (tiling.grid(9, 9), tiling.num_tiles(9, 9)) == ((1, 1), 1)
