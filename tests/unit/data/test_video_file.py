import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import (
    HEIGHT,
    STEP,
    WIDTH,
    flat_frames,
    grey,
    moving_frames,
    write_clip,
    write_jpeg_clip,
)

from megatron_moe_grpo.data import video_file
from megatron_moe_grpo.data.video_file import read_video, read_video_size, sample_indices
from megatron_moe_grpo.errors import DataError

# name, encoder, pixel format, B-frames: every container and codec that PyAV can write among those that are read.
KINDS = [
    ("h264.mp4", "libx264", "yuv420p", 3),
    ("mpeg4.mp4", "mpeg4", "yuv420p", 0),
    ("mpeg4.avi", "mpeg4", "yuv420p", 2),
    ("mjpeg.avi", "mjpeg", "yuvj420p", 0),
    ("vp8.webm", "libvpx", "yuv420p", 0),
    ("vp9.webm", "libvpx-vp9", "yuv420p", 0),
    ("hevc.mkv", "libx265", "yuv420p", 3),
    ("h264.mkv", "libx264", "yuv420p", 3),
    ("av1.mp4", "libsvtav1", "yuv420p", 0),
    ("ten_bit.mkv", "libx265", "yuv420p10le", 0),
    ("moving.gif", "gif", "rgb8", 0),
]


def _levels(pictures: tuple[Image.Image, ...]) -> list[int]:
    return [int(np.asarray(picture).mean() + 0.5) for picture in pictures]


def _internvl_indices(num_frames: int, num_segments: int) -> list[int]:
    """`get_index` of InternVL's model card (MIT), without bounds, its arguments written out."""
    start_idx, end_idx = 0, num_frames - 1
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]


def test_sample_indices_are_those_of_internvl() -> None:
    for max_frames in (1, 2, 3, 8, 16, 64):
        for num_frames in range(max_frames + 1, 400):
            assert sample_indices(num_frames, max_frames) == _internvl_indices(num_frames, max_frames)


def test_sample_indices_by_hand() -> None:
    assert sample_indices(101, 4) == [12, 37, 62, 87]  # segments of 25: 12.5 + 0, 25, 50, 75
    assert sample_indices(3, 4) == [0, 1, 2]
    assert sample_indices(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "codec", "pixel_format", "b_frames"), KINDS)
def test_read_video_gives_the_sampled_frames_of_every_kind(
    tmp_path: Path, name: str, codec: str, pixel_format: str, b_frames: int
) -> None:
    path = write_clip(tmp_path / name, flat_frames(28), codec, pixel_format, b_frames=b_frames)
    pictures = read_video(path, 5)
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (WIDTH, HEIGHT))}
    expected = [grey(index) for index in sample_indices(28, 5)]
    # Worst of all kinds: 3 levels, mpeg4; neighbours are 8 apart.
    assert np.abs(np.subtract(_levels(pictures), expected)).max() < STEP / 2
    assert read_video_size(path, 5) == (WIDTH, HEIGHT, 5)


@pytest.mark.parametrize(("name", "codec", "pixel_format", "b_frames"), KINDS)
def test_read_video_skips_packets_without_a_trace(
    tmp_path: Path, name: str, codec: str, pixel_format: str, b_frames: int
) -> None:
    """Frames after a jump are those of a decoder that saw the whole clip, to the bit."""
    path = write_clip(tmp_path / name, moving_frames(100), codec, pixel_format, b_frames=b_frames)
    _compare_with_whole_decode(path)


def test_read_video_skips_packets_of_open_groups_without_a_trace(tmp_path: Path) -> None:
    """Frames before a keyframe that need the group before it, which a decoder must forget after a jump."""
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=5:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "clip.mkv", moving_frames(100), "libx264", b_frames=5, options=options)
    _compare_with_whole_decode(path)


def _compare_with_whole_decode(path: Path) -> None:
    with av.open(str(path)) as container:
        all_frames = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    assert len(all_frames) == 100
    for max_frames in (1, 3, 100):
        expected = [all_frames[index] for index in sample_indices(100, max_frames)]
        np.testing.assert_array_equal([np.asarray(picture) for picture in read_video(path, max_frames)], expected)


def test_read_video_decodes_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving_frames(600), "libx264")
    # 1 + 2 frames at positions 150 and 449, at most 12 packets and the decoder's threads each.
    monkeypatch.setattr(video_file, "MAX_DECODED_PIXELS", 300 * WIDTH * HEIGHT)
    assert len(read_video(path, 2)) == 2
    with pytest.raises(DataError, match="takes too long to decode"):
        read_video(path, 100)


def test_read_video_takes_all_frames_of_a_short_clip(tmp_path: Path) -> None:
    for num_frames in (1, 2, 8):
        path = write_clip(tmp_path / f"{num_frames}.mp4", flat_frames(num_frames))
        levels = _levels(read_video(path, 8))
        np.testing.assert_allclose(levels, [grey(index) for index in range(num_frames)], atol=STEP / 2 - 1)
        assert read_video_size(path, 8) == (WIDTH, HEIGHT, num_frames)


def test_read_video_samples_by_frame_number_whatever_the_times(tmp_path: Path) -> None:
    # Twenty frames in the first second, four in the following minute.
    times = [*range(20), 400, 800, 1200, 1500]
    for name in ("clip.mp4", "clip.mkv"):
        path = write_clip(tmp_path / name, flat_frames(24), "libx264", times=times)
        expected = [grey(index) for index in sample_indices(24, 4)]
        np.testing.assert_allclose(_levels(read_video(path, 4)), expected, atol=STEP / 2 - 1)


@pytest.mark.parametrize(
    ("matrix", "size", "bright"),
    [
        ((1, 0, 0, 1), (WIDTH, HEIGHT), "top left"),
        ((0, 1, -1, 0), (HEIGHT, WIDTH), "top right"),  # a quarter turn clockwise: a phone held upright
        ((-1, 0, 0, -1), (WIDTH, HEIGHT), "bottom right"),
        ((0, -1, 1, 0), (HEIGHT, WIDTH), "bottom left"),
    ],
)
def test_read_video_turns_as_the_display_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], bright: str
) -> None:
    """ISO 14496-12: (a, b, c, d) takes (x, y) to (a x + c y, b x + d y), y down; written into the file by hand."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = 255
    path = write_clip(tmp_path / "clip.mp4", [pixels] * 3)
    _write_matrix(path, matrix)
    for picture in read_video(path, 2):
        assert picture.size == size
        width, height = size
        corners = {
            "top left": (width // 4, height // 4),
            "top right": (width * 3 // 4, height // 4),
            "bottom left": (width // 4, height * 3 // 4),
            "bottom right": (width * 3 // 4, height * 3 // 4),
        }
        assert [name for name, place in corners.items() if picture.getpixel(place)[0] > 200] == [bright]
    assert read_video_size(path, 2) == (*size, 2)


def test_read_video_refuses_odd_angles(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", flat_frames(3))
    _write_matrix(path, (0.8, 0.6, -0.6, 0.8))
    with pytest.raises(DataError, match="odd angle"):
        read_video(path, 2)


def _write_matrix(path: Path, matrix: tuple[float, float, float, float]) -> None:
    a, b, c, d = (int(value * 65536).to_bytes(4, "big", signed=True) for value in matrix)
    zero, whole = path.read_bytes(), b"\0" * 4
    start = zero.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of times, ids and volume stand before the matrix
    written = a + b + whole + c + d + whole
    path.write_bytes(zero[:start] + written + zero[start + len(written) :])


def test_read_video_leaves_out_what_an_edit_list_cuts_off(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", flat_frames(28), "libx264")
    with (
        av.open(str(whole)) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 5 * 512, packet.dts - 5 * 512, stream
                target.mux(packet)
    levels = _levels(read_video(tmp_path / "cut.mp4", 100))
    np.testing.assert_allclose(levels, [grey(index) for index in range(5, 28)], atol=STEP / 2 - 1)
    assert read_video_size(tmp_path / "cut.mp4", 100) == (WIDTH, HEIGHT, 23)


def test_read_video_gives_the_colours_that_pillow_gives(tmp_path: Path) -> None:
    colours = [(200, 30, 40), (20, 180, 60), (30, 50, 220), (240, 230, 60)]
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for index, colour in enumerate(colours):
        picture.paste(colour, (16 * index, 0, 16 * index + 16, HEIGHT))
    picture.save(tmp_path / "picture.jpg", quality=95)
    expected = [Image.open(tmp_path / "picture.jpg").getpixel((16 * index + 8, HEIGHT // 2)) for index in range(4)]
    for frame in read_video(write_jpeg_clip(tmp_path / "clip.avi", [picture] * 3), 8):
        found = [frame.getpixel((16 * index + 8, HEIGHT // 2)) for index in range(4)]
        np.testing.assert_allclose(found, expected, atol=2)  # worst 1; another colour matrix is off by 20


def test_read_video_refuses_frames_of_several_sizes(tmp_path: Path) -> None:
    small, large = Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))
    path = write_jpeg_clip(tmp_path / "clip.avi", [small] * 10 + [large] * 10)
    with pytest.raises(DataError, match=r"change size") as caught:
        read_video(path, 8)
    assert "(64, 32) after (32, 32)" in str(caught.value)


def test_read_video_refuses_a_later_frame_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jpeg_clip(tmp_path / "clip.avi", [Image.new("RGB", (32, 32)), Image.new("RGB", (800, 800))])
    monkeypatch.setattr(video_file, "MAX_BUFFER_PIXELS", 640 * 640)
    with pytest.raises(DataError, match="clip.avi cannot be decoded"):
        read_video(path, 8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.avi", "clip.gif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.95])
def test_read_video_refuses_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    codec = {"clip.webm": "libvpx", "clip.gif": "gif"}.get(name, "mpeg4")
    path = write_clip(tmp_path / name, moving_frames(30), codec, "rgb8" if codec == "gif" else "yuv420p")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    for read in (read_video, read_video_size):
        with pytest.raises(DataError) as caught:
            read(path, 8)
        assert str(path) in str(caught.value)


def test_read_video_takes_a_live_stream_that_does_not_know_its_length(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.webm", flat_frames(20), "libvpx")
    content = path.read_bytes()
    start = content.index(bytes.fromhex("18538067")) + 4  # Segment; RFC 8794 6.2: all ones are an unknown size
    path.write_bytes(content[:start] + bytes.fromhex("01ffffffffffffff") + content[start + 8 :])
    assert len(read_video(path, 8)) == 8


def test_read_video_refuses_a_truncated_mp4_whose_index_comes_first(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", moving_frames(30))
    with (
        av.open(str(whole)) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "fast.mp4").read_bytes()
    assert len(read_video(tmp_path / "fast.mp4", 8)) == 8
    (tmp_path / "fast.mp4").write_bytes(content[: int(len(content) * 0.9)])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_video(tmp_path / "fast.mp4", 8)


@pytest.mark.parametrize(("name", "codec", "pixel_format", "b_frames"), KINDS)
def test_read_video_of_damaged_files_gives_frames_or_a_data_error(
    tmp_path: Path, name: str, codec: str, pixel_format: str, b_frames: int
) -> None:
    whole = write_clip(tmp_path / name, moving_frames(20), codec, pixel_format, b_frames=b_frames).read_bytes()
    damaged, rng = tmp_path / "damaged", np.random.default_rng(0)
    for number in range(20):
        content = bytearray(whole)
        for position in rng.integers(0, 600 if number % 2 else len(content), 4):
            content[position] = rng.integers(256)
        damaged.write_bytes(content)
        try:
            pictures = read_video(damaged, 8)
        except DataError as error:
            assert str(damaged) in str(error)
        else:
            assert read_video_size(damaged, 8) == (*pictures[0].size, len(pictures))


def test_read_video_refuses_a_codec_that_ffmpeg_does_not_know(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", flat_frames(3))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"XXXX"))
    with pytest.raises(DataError, match="unsupported codec"):
        read_video(path, 8)


def test_read_video_takes_titles_that_are_not_utf_8(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", flat_frames(3))
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"La\xff\xfe"))
    assert len(read_video(path, 8)) == 3


def _write_bad_files(folder: Path) -> None:
    clip = write_clip(folder / "whole.mp4", flat_frames(20))
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    (folder / "text.mp4").write_text("<html>not found</html>")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    write_clip(folder / "stream.ts", flat_frames(20), "libx264")
    write_clip(folder / "mpeg2.mkv", flat_frames(20), "mpeg2video")
    # AVI keeps no times of showing, and H.264 in it does not say.
    write_clip(folder / "disordered.avi", moving_frames(20), "libx264", b_frames=3)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "fifo.mp4")


BAD_FILES = {
    "playlist.mp4": "cannot be decoded",
    "concat.mp4": "cannot be decoded",
    "text.mp4": "cannot be decoded",
    "picture.png": "cannot be decoded",
    "stream.ts": "cannot be decoded",
    "mpeg2.mkv": "unsupported codec",
    "disordered.avi": "out of order",
    "sound.mp4": "holds no video",
    "folder.mp4": "not a file",
    "fifo.mp4": "not a file",
    "missing.mp4": "not a file",
}


def test_read_video_refuses_and_names_bad_files(tmp_path: Path) -> None:
    _write_bad_files(tmp_path)
    for name, message in BAD_FILES.items():
        with pytest.raises(DataError, match=message) as caught:
            read_video(tmp_path / name, 8)
        assert str(tmp_path / name) in str(caught.value), name


def test_read_video_reads_a_file_whose_name_looks_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_clip(tmp_path / "clip.mp4", flat_frames(3)).rename(tmp_path / "concat:a|b.mp4")
    assert len(read_video(Path(path.name), 8)) == 3


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_PIXELS", WIDTH * HEIGHT, "unusable size"),
        ("MAX_PACKETS", 20, "too long"),
        ("MAX_PACKET_BYTES", None, "too long"),
    ],
)
def test_read_video_size_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int | None, message: str
) -> None:
    path = write_clip(tmp_path / "clip.mp4", flat_frames(20))
    with av.open(str(path)) as container:
        num_bytes = sum(packet.size for packet in container.demux(video=0))
    value = num_bytes if value is None else value
    monkeypatch.setattr(video_file, limit, value)
    assert read_video_size(path, 8) == (WIDTH, HEIGHT, 8)
    monkeypatch.setattr(video_file, limit, value - 1)
    with pytest.raises(DataError, match=message):
        read_video_size(path, 8)
