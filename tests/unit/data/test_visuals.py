from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clips import HEIGHT, WIDTH, flat_frames, write_clip

from megatron_moe_grpo.data.video_file import sample_indices
from megatron_moe_grpo.data.visuals import (
    VisualFiles,
    VisualSize,
    blanked,
    read_visual,
    read_visual_size,
    seen_paths,
)
from megatron_moe_grpo.errors import DataError


def _save_pictures(folder: Path, sizes: list[tuple[int, int]]) -> tuple[Path, ...]:
    """Picture `i` has level 10 i."""
    paths = tuple(folder / f"{index}.png" for index in range(len(sizes)))
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.new("RGB", size, (10 * index,) * 3).save(path)
    return paths


def test_read_visual_reads_one_picture(tmp_path: Path) -> None:
    (path,) = _save_pictures(tmp_path, [(7, 5)])
    visual = read_visual(VisualFiles((path,)), 8)
    assert visual.size == VisualSize(7, 5, num_frames=1, is_video=False) == read_visual_size(VisualFiles((path,)), 8)
    assert visual.frames[0].tobytes() == Image.open(path).tobytes()


@pytest.mark.parametrize("num_frames", [1, 3, 8, 9, 20])
def test_read_visual_samples_frames_stored_as_pictures(tmp_path: Path, num_frames: int) -> None:
    files = VisualFiles(_save_pictures(tmp_path, [(6, 4)] * num_frames), is_video=True)
    visual = read_visual(files, 8)
    indices = sample_indices(num_frames, 8)
    assert [frame.getpixel((0, 0))[0] for frame in visual.frames] == [10 * index for index in indices]
    assert seen_paths(files, 8) == [tmp_path / f"{index}.png" for index in indices]
    assert visual.size == VisualSize(6, 4, min(num_frames, 8), is_video=True) == read_visual_size(files, 8)


@pytest.mark.parametrize("num_frames", [1, 5, 20])
def test_read_visual_reads_a_video_file_like_its_frames(tmp_path: Path, num_frames: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", flat_frames(num_frames))
    files = VisualFiles((path,), is_video=True)
    visual = read_visual(files, 8)
    assert visual.size == VisualSize(WIDTH, HEIGHT, min(num_frames, 8), is_video=True) == read_visual_size(files, 8)
    expected = [flat_frames(num_frames)[index].mean() for index in sample_indices(num_frames, 8)]
    np.testing.assert_allclose([np.asarray(frame).mean() for frame in visual.frames], expected, atol=3)
    assert seen_paths(files, 8) == [path]


def test_read_visual_goes_by_content_not_by_name(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", flat_frames(3)).rename(tmp_path / "clip.png")
    assert read_visual(VisualFiles((clip,), is_video=True), 8).size.num_frames == 3
    (picture,) = _save_pictures(tmp_path, [(6, 4)])
    picture = picture.rename(tmp_path / "picture.mp4")
    assert read_visual_size(VisualFiles((picture,), is_video=True), 8) == VisualSize(6, 4, 1, is_video=True)


def test_read_visual_refuses_frames_of_several_sizes(tmp_path: Path) -> None:
    files = VisualFiles(_save_pictures(tmp_path, [(6, 4), (6, 4), (4, 6), (5, 5)]), is_video=True)
    for read in (read_visual, read_visual_size):
        with pytest.raises(DataError, match="differ in size") as caught:
            read(files, 8)
        assert str(tmp_path / "2.png") in str(caught.value)
        assert "4 x 6 pixels" in str(caught.value)
        assert "6 x 4" in str(caught.value)


def test_read_visual_refuses_video_files_as_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", flat_frames(3))
    for read in (read_visual, read_visual_size):
        with pytest.raises(DataError, match="clip.mp4 cannot be decoded"):
            read(VisualFiles((clip, clip), is_video=True), 8)
        with pytest.raises(DataError, match="clip.mp4 cannot be decoded"):
            read(VisualFiles((clip,)), 8)


@pytest.mark.parametrize("name", ["broken.png", "huge.png", "missing.png"])
def test_read_visual_names_a_bad_picture_as_a_picture(tmp_path: Path, name: str) -> None:
    (whole,) = _save_pictures(tmp_path, [(64, 64)])
    (tmp_path / "broken.png").write_bytes(whole.read_bytes()[:50])
    Image.new("1", (16_384, 16_384)).save(tmp_path / "huge.png")
    message = "is not a file" if name == "missing.png" else f"the image .*{name} cannot be decoded"
    for read in (read_visual, read_visual_size):
        with pytest.raises(DataError, match=message):
            read(VisualFiles((tmp_path / name,), is_video=True), 8)


def test_blanked_keeps_sizes_and_nothing_else(tmp_path: Path) -> None:
    files = VisualFiles(_save_pictures(tmp_path, [(6, 4)] * 3), is_video=True)
    visual = read_visual(files, 8)
    blank = blanked(visual)
    assert blank.size == visual.size
    assert [frame.getcolors() for frame in blank.frames] == [[(24, (128, 128, 128))]] * 3
    assert visual.frames[1].getpixel((0, 0)) == (10, 10, 10)
