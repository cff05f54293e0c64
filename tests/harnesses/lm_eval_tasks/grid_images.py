"""What lm-eval calls for a row's pictures; runs in lm-eval's own environment."""

from typing import Any

from PIL import Image


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """The one picture of the row."""
    return [Image.open(row["image"]).convert("RGB")]
