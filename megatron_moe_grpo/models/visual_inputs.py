"""One prompt's pictures and videos as numbers, whatever the family."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisualInputs:
    """What a family's vision tower takes, in reading order."""

    pixel_values: Tensor
    """float32; InternVL: tiles [tiles, 3, H, W]; Qwen2-VL: patches [patches, 3 * 2 * patch * patch]."""
    num_features: int
    """Rows of image features that come out, equal to the vision tokens in the prompt."""
    grid_V3: Tensor | None = None
    """Qwen2-VL: (time, height, width) of each visual in patches, int64; None for InternVL."""
