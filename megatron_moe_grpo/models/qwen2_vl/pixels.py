"""Pictures and video frames to flattened patches, with PIL and NumPy; equal to transformers' Qwen2VLImageProcessorPil.

A video's frames are resized by PIL like pictures and cut into patches as transformers' `Qwen2VLVideoProcessor` does.
That one resizes with torchvision, which is not used here and whose bicubic filter need not round alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError

# What transformers' processor takes for keys that a folder leaves out, as the folders on the hub do.
DEFAULTS: Mapping[str, Any] = {
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "resample": Image.Resampling.BICUBIC,
    "rescale_factor": 1 / 255,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
VIDEO_DEFAULT_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """The steps of `preprocessor_config.json`: resize, rescale, normalise, cut.  Bounds hold for one frame."""

    min_pixels: int
    """Smaller pictures are scaled up to this area."""
    max_pixels: int
    """Larger pictures are scaled down to this area."""
    patch_size: int
    """Side of a patch, pixels."""
    temporal_patch_size: int
    """Frames that one patch spans; a picture fills them all."""
    merge_size: int
    """merge_size x merge_size patches, one vision token, lie together."""
    resample: Image.Resampling
    rescale_factor: float
    mean: tuple[float, ...]
    """Per channel, of rescaled pixels."""
    std: tuple[float, ...]

    @classmethod
    def from_huggingface(cls, settings: Mapping[str, Any], is_video: bool = False) -> "PixelSettings":
        """Reads the dict; `min_pixels` and `max_pixels` overrule `size`, as in transformers.

        Args:
            is_video: videos have other bounds where the folder names none.
        Raises:
            ConfigError: a setting cannot be read, or asks for a step that is not supported.
        """
        steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
        switched_off = [step for step in steps if settings.get(step, True) is not True]
        if switched_off:
            raise ConfigError("Steps of the image processor cannot be switched off.", got=", ".join(switched_off))
        if settings.get("cap_pixels_per_frame"):
            raise ConfigError(
                "A budget of pixels for a whole video is not supported.",
                got="cap_pixels_per_frame: true",
                expected="cap_pixels_per_frame: false",
            )
        defaults = {**DEFAULTS, "size": VIDEO_DEFAULT_SIZE} if is_video else DEFAULTS
        known = {**defaults} | {key: settings[key] for key in DEFAULTS if settings.get(key) is not None}
        try:
            return cls(
                min_pixels=int(settings.get("min_pixels") or known["size"]["shortest_edge"]),
                max_pixels=int(settings.get("max_pixels") or known["size"]["longest_edge"]),
                patch_size=int(known["patch_size"]),
                temporal_patch_size=int(known["temporal_patch_size"]),
                merge_size=int(known["merge_size"]),
                resample=Image.Resampling(known["resample"]),
                rescale_factor=float(known["rescale_factor"]),
                mean=tuple(map(float, known["image_mean"])),
                std=tuple(map(float, known["image_std"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "The image processor's settings cannot be read.",
                got=repr(error),
                expected="min_pixels and max_pixels, or size {shortest_edge, longest_edge}; resample; image_mean",
            ) from error

    def grid(self, size: VisualSize) -> tuple[int, int, int]:
        """Patches in time, height and width.  Raises DataError: a picture more than 200 times as long as wide."""
        height, width = self._resized(size.height, size.width)
        time = -(-size.num_frames // self.temporal_patch_size)
        return time, height // self.patch_size, width // self.patch_size

    def patches(self, visual: Visual) -> np.ndarray:
        """float32 [patches, 3 * temporal * patch * patch]; the patches of a vision token follow each other.

        The last frame is repeated until patches are full in time.
        """
        time, grid_height, grid_width = self.grid(visual.size)
        side, merge = self.patch_size, self.merge_size
        target = (grid_height * side, grid_width * side)
        frames = [self._array(frame, target) for frame in visual.frames]
        frames += frames[-1:] * (time * self.temporal_patch_size - len(frames))
        blocks = np.stack(frames).reshape(
            time, self.temporal_patch_size, 3, grid_height // merge, merge, side, grid_width // merge, merge, side
        )
        ordered = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return ordered.reshape(time * grid_height * grid_width, 3 * self.temporal_patch_size * side * side)

    def _array(self, image: Image.Image, target: tuple[int, int]) -> np.ndarray:
        """float32 [3, H, W] of one frame."""
        height, width = target
        resized = image.convert("RGB").resize((width, height), resample=self.resample)
        # float64 here and float32 from there on, because the oracle does so.
        scaled = (np.asarray(resized, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return normalised.transpose(2, 0, 1)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Sides that are whole vision tokens, with an area in bounds and nearly the same aspect (`smart_resize`)."""
        if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
            raise DataError(
                "A picture is too long and thin.",
                got=f"{width} x {height} pixels",
                expected=f"sides within a factor of {MAX_ASPECT_RATIO}",
            )
        unit = self.patch_size * self.merge_size
        sides = round(height / unit) * unit, round(width / unit) * unit
        if sides[0] * sides[1] > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return (
                max(unit, math.floor(height / shrink / unit) * unit),
                max(unit, math.floor(width / shrink / unit) * unit),
            )
        if sides[0] * sides[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
        return sides
