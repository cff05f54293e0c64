"""What lmms-eval calls for a row's prompt; runs in lmms-eval's own environment."""

from typing import Any

from PIL import Image


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """The one picture of the row."""
    return [Image.open(row["image"]).convert("RGB")]


def question(row: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The prompt's text, picture aside."""
    return row["question"]


def messages(row: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """One turn of the user: the picture, then the text."""
    picture = {"type": "image", "url": pictures(row)[0]}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question(row)}]}]
