"""How many tiles a picture is cut into, and the tiles; equal to transformers' GotOcr2 image processor."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """InternVL's dynamic tiling: a grid whose aspect ratio is nearest the picture's, and the whole picture after it."""

    tile_size: tuple[int, int]
    """Height and width of one tile, pixels."""
    min_tiles: int = 1
    max_tiles: int = 1
    """Largest grid, thumbnail not counted; 1: every picture is one tile."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of a picture of that many pixels."""
        if self.max_tiles == 1:
            return 1, 1
        return get_optimal_tiled_canvas((height, width), self.tile_size, self.min_tiles, self.max_tiles)

    def num_tiles(self, width: int, height: int) -> int:
        """Tiles of a picture, thumbnail counted; its size is enough, it is not decoded."""
        columns, rows = self.grid(width, height)
        return columns * rows + (columns * rows > 1)

    def cut(self, image: Image.Image, resample: Image.Resampling) -> Iterator[Image.Image]:
        """The tiles row by row, then the thumbnail; the picture is stretched to fill its grid."""
        height, width = self.tile_size
        columns, rows = self.grid(*image.size)
        canvas = image.resize((columns * width, rows * height), resample=resample)
        for row in range(rows):
            for column in range(columns):
                yield canvas.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        if self.num_tiles(*image.size) > columns * rows:
            yield image.resize((width, height), resample=resample)
