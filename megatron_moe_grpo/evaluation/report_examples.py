"""Example rollouts of the run report, with their pictures and video frames inlined."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, VisualFiles, read_visual
from megatron_moe_grpo.errors import DataError

SMALLEST_SIDE_PIXELS = 192
LARGEST_SIDE_PIXELS = 640


@dataclass(frozen=True)
class Rollout:
    """One response of a group."""

    response: str
    reward: float

    @property
    def reward_text(self) -> str:
        return f"{self.reward:g}"


@dataclass(frozen=True)
class Example:
    """One question, its pictures and videos and the whole group's responses."""

    id: str
    problem_type: str
    problem: str
    options: list[str]
    solution: str
    images: list[list[str]]
    """Data URIs of each picture, one, or of each video, up to 8 frames."""
    missing_images: list[str]
    rollouts: list[Rollout]
    experts_differ: str | None

    @property
    def num_right(self) -> int:
        """Responses that earned something."""
        return sum(rollout.reward > 0 for rollout in self.rollouts)

    @property
    def outcome(self) -> str:
        """What the gallery filters by."""
        if self.num_right in (0, len(self.rollouts)):
            return "right" if self.num_right else "wrong"
        return "mixed"


def read_example(sample: Mapping[str, Any], run_folder: Path) -> Example:
    """From one line of samples.jsonl; a relative path starts at the run folder.

    A file that is gone or damaged is listed by name: the run may have moved to another machine.
    """
    images, missing = [], []
    for text in sample["visual_paths"]:
        # Read as a video, a picture has one frame.
        files = VisualFiles((run_folder / text,), is_video=True)
        try:
            images.append([image_data_uri(frame) for frame in read_visual(files, VIDEO_FRAMES).frames])
        except DataError:
            missing.append(Path(text).name)
    differ = sample.get("experts_differ")
    return Example(
        id=str(sample["id"]),
        problem_type=sample["problem_type"],
        problem=sample["problem"],
        options=list(sample["options"]),
        solution=sample["solution"],
        images=images,
        missing_images=missing,
        rollouts=_rollouts(sample["responses"], sample["rewards"]),
        experts_differ=None if differ is None else f"{100 * float(differ):.0f} %",
    )


def image_data_uri(image: Image.Image) -> str:
    """PNG; small pictures grow by a whole factor without smoothing, large ones shrink to fit the page."""
    factor = max(1, SMALLEST_SIDE_PIXELS // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST_SIDE_PIXELS, LARGEST_SIDE_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rollouts(responses: Sequence[str], rewards: Sequence[float]) -> list[Rollout]:
    return [Rollout(text or "(empty)", float(reward)) for text, reward in zip(responses, rewards, strict=True)]
