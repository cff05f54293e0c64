"""One picture to normalised tiles, with PIL and NumPy; equal to transformers' GotOcr2ImageProcessorPil."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.tiling import Tiling

WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class PixelSettings:
    """The steps of `preprocessor_config.json`: cut into tiles of one size, rescale, normalise."""

    tiling: Tiling
    resample: Image.Resampling
    rescale_factor: float
    mean: tuple[float, ...]
    """Per channel, of rescaled pixels."""
    std: tuple[float, ...]

    @classmethod
    def from_huggingface(cls, settings: Mapping[str, Any]) -> "PixelSettings":
        """Reads the dict strictly.

        `crop_to_patches`, `min_patches` and `max_patches` are taken as the file says them.  Released native folders say
        `crop_to_patches: false`, one tile a picture; the stock InternVLProcessor crops all the same, unless its
        caller forbids it, into up to `max_patches` tiles.  There is no other switch: edit the file before `import`,
        and the checkpoint, its evaluation and its export all see the same tiles.

        Raises:
            ConfigError: a setting is missing, or asks for a step that is not supported.
        """
        steps = ("do_resize", "do_rescale", "do_normalize")
        switched_off = [step for step in steps if settings.get(step, True) is not True]
        if switched_off:
            raise ConfigError("Steps of the image processor cannot be switched off.", got=", ".join(switched_off))
        try:
            return cls(
                tiling=_tiling(settings),
                resample=Image.Resampling(settings["resample"]),
                rescale_factor=float(settings["rescale_factor"]),
                mean=tuple(map(float, settings["image_mean"])),
                std=tuple(map(float, settings["image_std"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            expected = "size {height, width}, resample, rescale_factor, image_mean, image_std"
            raise ConfigError(
                "The image processor's settings cannot be read.", got=repr(error), expected=expected
            ) from error

    def tiles(self, image: Image.Image) -> list[np.ndarray]:
        """A picture's tiles, float32 [3, H, W] each; transparent pictures are laid on white."""
        return [self._normalised(tile) for tile in self.tiling.cut(_as_rgb(image), self.resample)]

    def frame(self, image: Image.Image) -> np.ndarray:
        """A video's frame, always one tile.

        Resized as a picture is; the stock video processor resizes with torchvision, which rounds differently.
        """
        height, width = self.tiling.tile_size
        return self._normalised(_as_rgb(image).resize((width, height), resample=self.resample))

    def _normalised(self, tile: Image.Image) -> np.ndarray:
        # float64 here and float32 from there on, because the oracle does so.
        scaled = (np.asarray(tile, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _tiling(settings: Mapping[str, Any]) -> Tiling:
    tile_size = int(settings["size"]["height"]), int(settings["size"]["width"])
    # The defaults are those of transformers' class, for files that leave them out.
    max_tiles = int(settings.get("max_patches", 12)) if settings.get("crop_to_patches", False) else 1
    min_tiles = min(int(settings.get("min_patches", 1)), max_tiles)
    return Tiling(tile_size=tile_size, min_tiles=min_tiles, max_tiles=max_tiles)


def _as_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
