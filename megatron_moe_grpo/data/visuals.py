"""Pictures and videos of a row: their files, their sizes, their frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from megatron_moe_grpo.data.images import is_picture, read_image, read_image_size
from megatron_moe_grpo.data.video_file import read_video, read_video_size, sample_indices
from megatron_moe_grpo.errors import DataError

MID_GREY = 128
# The paper shows up to 8 frames of a video.
VIDEO_FRAMES = 8


@dataclass(frozen=True)
class VisualFiles:
    """One picture, or one video: a video file, or its frames as pictures."""

    paths: tuple[Path, ...]
    is_video: bool = False
    seconds: tuple[float, float] | None = None
    """Only this part of a video file is seen, from when to when it is shown; None: all of it."""


@dataclass(frozen=True)
class VisualSize:
    """All that a visual's number of tokens depends on."""

    width: int
    height: int
    num_frames: int = 1
    is_video: bool = False


@dataclass(frozen=True)
class Visual:
    """Decoded RGB frames; a picture has one."""

    frames: tuple[Image.Image, ...]
    is_video: bool = False

    @property
    def size(self) -> VisualSize:
        """Size of the frames, all equal, and their number."""
        width, height = self.frames[0].size
        return VisualSize(width, height, len(self.frames), self.is_video)


def read_visual(files: VisualFiles, max_frames: int) -> Visual:
    """The decoded visual; of a video at most `max_frames` frames, taken evenly (`video_file.sample_indices`).

    Raises:
        DataError: names the path; see `read_image` and `read_video`; frames of several sizes.
    """
    if _is_video_file(files):
        return Visual(read_video(files.paths[0], max_frames, files.seconds), is_video=True)
    paths = seen_paths(files, max_frames)
    frames = tuple(read_image(path) for path in paths)
    _refuse_several_sizes(paths, [frame.size for frame in frames])
    return Visual(frames, files.is_video)


def read_visual_size(files: VisualFiles, max_frames: int) -> VisualSize:
    """What `read_visual(...).size` is, from headers; of a video file one frame is decoded.

    Raises DataError as `read_visual`, as far as that tells.
    """
    if _is_video_file(files):
        width, height, num_frames = read_video_size(files.paths[0], max_frames, files.seconds)
        return VisualSize(width, height, num_frames, is_video=True)
    paths = seen_paths(files, max_frames)
    sizes = [read_image_size(path) for path in paths]
    _refuse_several_sizes(paths, sizes)
    return VisualSize(*sizes[0], len(sizes), files.is_video)


def seen_paths(files: VisualFiles, max_frames: int) -> list[Path]:
    """The files that are opened: of frames stored as pictures, those that are sampled."""
    return [files.paths[index] for index in sample_indices(len(files.paths), max_frames)]


def _is_video_file(files: VisualFiles) -> bool:
    """A video of one path is a video file or has one frame: the file itself tells."""
    return files.is_video and len(files.paths) == 1 and not is_picture(files.paths[0])


def _refuse_several_sizes(paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
    """Only frames of a video are several here."""
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"the frames of one video differ in size: {path}",
                got=f"{size[0]} x {size[1]} pixels",
                expected=f"{sizes[0][0]} x {sizes[0][1]} like {paths[0]}",
                remedy="scale the frames to one size; pictures that are no video go into images",
            )


def blanked(visual: Visual) -> Visual:
    """The visual with every pixel mid-grey: the control that shows what questions alone give away."""
    return Visual(tuple(frame.point(lambda _: MID_GREY) for frame in visual.frames), visual.is_video)
