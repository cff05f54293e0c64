"""Small clips whose frames can be told apart, written with PyAV for the tests."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
STEP = 8


def grey(index: int) -> int:
    """Level of frame `index` of a flat clip; neighbours differ by STEP."""
    return 16 + STEP * (index % 28)


def flat_frames(num_frames: int) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), grey(index), np.uint8) for index in range(num_frames)]


def moving_frames(num_frames: int) -> list[np.ndarray]:
    """Coloured squares that move by one pixel a frame, so that most frames are stored as differences."""
    squares = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = np.kron(squares, np.ones((8, 8, 1), np.uint8))
    return [np.ascontiguousarray(np.roll(picture, index, axis=1)) for index in range(num_frames)]


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "mpeg4",
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A keyframe every 12 frames; `times` in 1/25 s, one after another if None; `options` of the encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = pixel_format, 12, b_frames
        stream.options = options or {}
        # Encoders with several threads wait for one another by spinning: minutes on a machine that is busy.
        stream.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_jpeg_clip(path: Path, pictures: Sequence[Image.Image]) -> Path:
    """An AVI of one JPEG a frame, as Pillow writes them, of any sizes; the header has the first one's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuvj420p"
        for index, picture in enumerate(pictures):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=95)
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            container.mux(packet)
    return path
