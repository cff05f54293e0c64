"""A part of a video, from when to when it is shown, against MVBench's own formula."""

from pathlib import Path

import numpy as np
import pytest
from video_clips import flat_frames, grey, write_clip

from megatron_moe_grpo.data.video_file import read_video, read_video_size
from megatron_moe_grpo.data.visuals import VisualFiles, read_visual, read_visual_size
from megatron_moe_grpo.errors import DataError

NUM_FRAMES, RATE = 25, 25


def seen_indices(path: Path, max_frames: int, seconds: tuple[float, float]) -> list[int]:
    levels = [np.asarray(picture).mean() for picture in read_video(path, max_frames, seconds)]
    return [min(range(NUM_FRAMES), key=lambda index: abs(grey(index) - level)) for level in levels]


def mvbench_indices(max_frames: int, start: float, end: float) -> list[int]:
    """`get_index` of MVBench's reader, for a clip without a first index."""
    first, last = max(0, round(start * RATE)), min(round(end * RATE), NUM_FRAMES - 1)
    segment = (last - first) / max_frames
    return [int(first + segment / 2 + np.round(segment * index)) for index in range(max_frames)]


@pytest.mark.parametrize(
    ("start", "end", "max_frames"), [(0.2, 0.84, 4), (0.0, 0.96, 8), (0.5, 5.0, 3), (0.31, 0.77, 2)]
)
def test_read_video_shows_the_frames_that_mvbench_shows(
    start: float, end: float, max_frames: int, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "a.mp4", flat_frames(NUM_FRAMES))
    assert seen_indices(clip, max_frames, (start, end)) == mvbench_indices(max_frames, start, end)


def test_read_video_shows_all_of_a_part_with_few_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", flat_frames(NUM_FRAMES))
    assert seen_indices(clip, 8, (0.2, 0.32)) == [5, 6, 7, 8]
    assert read_video_size(clip, 8, (0.2, 0.32))[2] == 4


def test_read_visual_and_its_size_take_the_part(tmp_path: Path) -> None:
    files = VisualFiles((write_clip(tmp_path / "a.mp4", flat_frames(NUM_FRAMES)),), True, (0.2, 0.32))
    assert read_visual(files, 8).size == read_visual_size(files, 8)


def test_read_video_refuses_a_part_after_the_end(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", flat_frames(NUM_FRAMES))
    with pytest.raises(DataError, match="shorter than the wanted part"):
        read_video(clip, 4, (2.0, 3.0))
