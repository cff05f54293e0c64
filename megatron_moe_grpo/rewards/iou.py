"""Accuracy of a bounding box: intersection over union with the right one, a number between 0 and 1.

Graded, as OneThinker rewards spatial grounding; scripts that count hits (VLM-R1) ask for more than 0.5 of it.
"""

import re
from collections.abc import Sequence

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of

Box = tuple[float, float, float, float]

# At most seven digits before and after the point: no image is larger, and nothing overflows.
COORDINATE = r"\s*(-?[0-9]{1,7}(?:\.[0-9]{1,7})?)\s*"
BRACKETED = rf"\[{COORDINATE},{COORDINATE},{COORDINATE},{COORDINATE}\]"
BOX = re.compile(BRACKETED)
ONLY_BOX = re.compile(rf'(?:\{{\s*"(?:boxes|box|bbox|bbox_2d)"\s*:\s*{BRACKETED}\s*\}}|{BRACKETED})')
CORNERS = re.compile(rf"\({COORDINATE},{COORDINATE}\)\s*,?\s*\({COORDINATE},{COORDINATE}\)")


class Iou:
    """`box_iou` of the box in the answer and the box of the solution; 0.0 where the answer holds no box."""

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        right = read_box(solution, "strict")
        assert right is not None, "rows are checked when they are loaded"
        answer = answer_of(response, self._extraction)
        box = None if answer is None else read_box(answer, self._extraction)
        return 0.0 if box is None else box_iou(box, right)

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        if read_box(solution, "strict") is None:
            return f"the solution {solution[:60]!r} is no box [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        return None


def read_box(text: str, extraction: Extraction) -> Box | None:
    """The box (x1, y1, x2, y2) in `text`, or None; a box without area is none, and corners are not swapped.

    `strict`: `[x1, y1, x2, y2]`, the same as the only value of a JSON object (`{"boxes": [..]}`), or Qwen2-VL's
    `(x1,y1),(x2,y2)`, and nothing else.
    `official`: the first bracket of four numbers, as VLM-R1 searches it, or corners.
    """
    if extraction == "strict":
        match = ONLY_BOX.fullmatch(text.strip()) or CORNERS.fullmatch(text.strip())
    else:
        match = BOX.search(text) or CORNERS.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (float(group) for group in match.groups() if group is not None)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def box_iou(box: Box, other: Box) -> float:
    """Area of the intersection over area of the union; both boxes have an area."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    return intersection / (_area(box) + _area(other) - intersection)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
