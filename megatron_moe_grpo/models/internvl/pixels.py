"""One picture to one normalised array, with PIL and NumPy; equal to transformers' GotOcr2ImageProcessorPil."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from megatron_moe_grpo.errors import ConfigError

WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class PixelSettings:
    """The steps of `preprocessor_config.json`: resize, rescale, normalise."""

    size: tuple[int, int]
    """Height and width, pixels."""
    resample: Image.Resampling
    rescale_factor: float
    mean: tuple[float, ...]
    """Per channel, of rescaled pixels."""
    std: tuple[float, ...]

    @classmethod
    def from_huggingface(cls, settings: Mapping[str, Any]) -> "PixelSettings":
        """Reads the dict strictly.

        Raises:
            ConfigError: a setting is missing, or asks for a step that is not supported.
        """
        if settings.get("crop_to_patches", False):
            raise ConfigError(
                "Cropping a picture into several tiles is not supported.",
                got="crop_to_patches: true",
                expected="crop_to_patches: false",
                remedy="set it so: one picture is one tile",
            )
        steps = ("do_resize", "do_rescale", "do_normalize")
        switched_off = [step for step in steps if settings.get(step, True) is not True]
        if switched_off:
            raise ConfigError("Steps of the image processor cannot be switched off.", got=", ".join(switched_off))
        try:
            return cls(
                size=(int(settings["size"]["height"]), int(settings["size"]["width"])),
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

    def array(self, image: Image.Image) -> np.ndarray:
        """float32 [3, H, W]; transparent pictures are laid on white."""
        height, width = self.size
        resized = _as_rgb(image).resize((width, height), resample=self.resample)
        # float64 here and float32 from there on, because the oracle does so.
        scaled = (np.asarray(resized, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _as_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
