"""What a camera does to a clear picture.  Pure functions on grey values in [0, 1], any shape, float64."""

from collections.abc import Callable
from typing import Literal

import numpy as np

CameraName = Literal["clear", "washed_out", "noisy"]
Camera = Callable[[np.ndarray, np.random.Generator], np.ndarray]

CONTRAST = 0.35
BRIGHTNESS = 0.3
NOISE_STD = 0.45


def clear(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture as it is."""
    return picture


def washed_out(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0.35 x + 0.3: little contrast, too bright."""
    return CONTRAST * picture + BRIGHTNESS


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x + Gaussian noise of standard deviation 0.45, clipped to [0, 1]."""
    return np.clip(picture + rng.normal(0.0, NOISE_STD, picture.shape), 0.0, 1.0)


CAMERAS: dict[CameraName, Camera] = {"clear": clear, "washed_out": washed_out, "noisy": noisy}
