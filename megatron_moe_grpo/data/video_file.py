"""From a video file to a few RGB pictures, with the guards a user's file needs.

FFmpeg alone opens playlists that reach other files and the network, and some hundred decoders; both are closed here.
Sampling is by frame number, not by time (as InternVL and decord do), so in a clip of variable frame rate the busy parts
get more of the frames.  Pixels are taken as square, and sound is not read.

Nothing seeks: what a seek lands on differs from container to container.  All packets are read, which is disk speed, and
only those between a wanted frame and the keyframe before it are decoded.
"""

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from megatron_moe_grpo.data.images import MAX_PIXELS
from megatron_moe_grpo.data.video_truncation import refuse_truncated
from megatron_moe_grpo.errors import DataError

# FFmpeg's names; "mov" stands for mp4, m4v and 3gp too.
CONTAINERS = ("mov", "matroska", "webm", "avi", "gif")
CODECS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mjpeg", "gif")
# `codec_whitelist` knows decoders, and AV1 has three.
DECODERS = (*CODECS, "libdav1d", "libaom-av1", "libvpx-vp8", "libvpx-vp9")
# Two hours at 60 frames a second.
MAX_PACKETS = 432_000
MAX_PACKET_BYTES = 2**34
# Some 16,000 frames of 1920 x 1080: under a minute of H.264 on one core, minutes of a GIF that is made to be slow.
MAX_DECODED_PIXELS = 2**35
# Decoders count rows and columns as padded to whole blocks.
MAX_BUFFER_PIXELS = 2 * MAX_PIXELS
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(DECODERS),
    "max_pixels": str(MAX_BUFFER_PIXELS),
}
TURNS = {
    0: None,
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
REENCODE = "encode it again (ffmpeg -i IN -c:v libx264 OUT.mp4), or skip the row"
DECODE_ERRORS = (av.FFmpegError, OSError, ValueError, ArithmeticError, LookupError, MemoryError)


def sample_indices(num_frames: int, max_frames: int) -> list[int]:
    """Which frames are seen: all, or the middle of each of `max_frames` equal segments.

    InternVL's `get_index`: with s = (num_frames - 1) / max_frames, frame int(s / 2 + round(s i)), i = 0, 1, ...
    """
    if num_frames <= max_frames:
        return list(range(num_frames))
    segment = (num_frames - 1) / max_frames
    return [int(segment / 2 + round(segment * index)) for index in range(max_frames)]


def read_video(path: Path, max_frames: int, seconds: tuple[float, float] | None = None) -> tuple[Image.Image, ...]:
    """The sampled frames as RGB, turned as the file's display matrix says.

    Args:
        seconds: only the frames from that nearest the first to that nearest the second time are sampled.
    Raises:
        DataError: names the path; another container or codec than those above, above 16.8 megapixels a frame or
            432,000 frames, too long to decode, frames of several sizes, truncated or damaged, shorter than `seconds`.
    """
    times = _frame_times(path, seconds)
    # The first frame too: its size is what `read_video_size` tells.
    wanted = [times.shown[index] for index in [0, *sample_indices(len(times.shown), max_frames)]]
    first, *pictures = _pictures_at(path, times, wanted)
    for picture in pictures:
        if picture.size != first.size:
            raise DataError(
                f"the frames of {path} change size",
                got=f"{picture.size} after {first.size}",
                remedy="encode the video again at one size, or skip the row",
            )
    return tuple(pictures)


def read_video_size(path: Path, max_frames: int, seconds: tuple[float, float] | None = None) -> tuple[int, int, int]:
    """(width, height, number) of the frames that `read_video` gives; decodes one frame.  Raises DataError likewise."""
    times = _frame_times(path, seconds)
    (first,) = _pictures_at(path, times, times.shown[:1])
    return first.width, first.height, min(len(times.shown), max_frames)


@dataclass(frozen=True)
class _FrameTimes:
    """Time stamps of a video's frames, in the stream's own unit."""

    shown: tuple[int, ...]
    """All frames of the wanted part, in the order in which they are shown."""
    keyframes: tuple[tuple[int, int], ...]
    """(time stamp, position among the stream's packets) of the frames that decode without others, by time."""

    def start_of(self, time: int) -> int:
        """Position of the packet to decode from in order to see the frame shown at `time`."""
        later = bisect.bisect_right(self.keyframes, time, key=itemgetter(0))
        return self.keyframes[later - 1][1] if later else 0


def _frame_times(path: Path, seconds: tuple[float, float] | None) -> _FrameTimes:
    shown, keyframes, num_bytes = [], [], 0
    with _opened(path) as (container, stream):
        tick_s = float(stream.time_base)
        for position, packet in enumerate(container.demux(stream)):
            if packet.size == 0:  # the last one, which only empties the decoder
                continue
            num_bytes += packet.size
            if position >= MAX_PACKETS or num_bytes > MAX_PACKET_BYTES:
                raise DataError(
                    f"the video {path} is too long",
                    expected=f"at most {MAX_PACKETS} frames and {MAX_PACKET_BYTES} bytes",
                    remedy="cut it, or skip the row",
                )
            if packet.is_corrupt:
                raise DataError(f"the video {path} is truncated or damaged", remedy="replace the file, or skip the row")
            # AVI keeps no times of showing; where that matters, `_pictures_at` notices.
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:
                raise DataError(f"a frame of the video {path} has no time stamp", remedy=REENCODE)
            if packet.is_keyframe:
                keyframes.append((time, position))
            if not packet.is_discard:  # cut off by an edit list: decoded, never shown
                shown.append(time)
    if not shown:
        raise DataError(f"the video {path} has no frames", remedy="replace the file, or skip the row")
    shown.sort()
    if seconds is not None:
        shown = _part(path, shown, tick_s, seconds)
    return _FrameTimes(tuple(shown), tuple(sorted(keyframes)))


def _part(path: Path, shown: list[int], tick_s: float, seconds: tuple[float, float]) -> list[int]:
    """The times from that nearest `seconds[0]` to that nearest `seconds[1]`, counted from the first frame."""
    start, end = (shown[0] + second / tick_s for second in seconds)
    if start > shown[-1]:
        raise DataError(
            f"the video {path} is shorter than the wanted part of it",
            got=f"{(shown[-1] - shown[0]) * tick_s:.2f} seconds",
            expected=f"{seconds[0]:.2f} to {seconds[1]:.2f} seconds",
            remedy="replace the file, or skip the row",
        )
    return shown[_nearest(shown, start) : _nearest(shown, end) + 1]


def _nearest(ascending: Sequence[int], value: float) -> int:
    """Index of the element nearest `value`; of two, the first."""
    return min(range(len(ascending)), key=lambda index: abs(ascending[index] - value))


def _pictures_at(path: Path, times: _FrameTimes, wanted: Sequence[int]) -> list[Image.Image]:
    """The frame shown at each of the `wanted` times, which ascend."""
    pictures: list[Image.Image] = []
    start, num_pixels, latest = times.start_of(wanted[0]), 0, None
    with _opened(path) as (container, stream):
        for position, packet in enumerate(container.demux(stream)):
            if position < start:
                continue
            num_pixels += stream.codec_context.width * stream.codec_context.height
            if num_pixels > MAX_DECODED_PIXELS:
                raise DataError(f"the video {path} takes too long to decode", remedy=REENCODE)
            for frame in packet.decode():
                if frame.pts is None or (latest is not None and frame.pts < latest):
                    raise DataError(f"the frames of {path} come out of order", got=frame.pts, remedy=REENCODE)
                latest = frame.pts
                while len(pictures) < len(wanted) and latest >= wanted[len(pictures)]:
                    pictures.append(_to_picture(frame, path))
            if len(pictures) == len(wanted):
                return pictures
            next_start = times.start_of(wanted[len(pictures)])
            if next_start > position:
                stream.codec_context.flush_buffers()
                start = next_start
    raise DataError(
        f"the video {path} ends early",
        got=f"{len(pictures)} of {len(wanted)} frames wanted",
        remedy="replace the file, or skip the row",
    )


def _to_picture(frame: VideoFrame, path: Path) -> Image.Image:
    if frame.is_corrupt:
        raise DataError(f"a frame of the video {path} is damaged", remedy="replace the file, or skip the row")
    degrees = frame.rotation % 360
    if degrees not in TURNS:
        raise DataError(
            f"the video {path} is turned by an odd angle",
            got=f"{degrees} degrees",
            expected=list(TURNS),
            remedy=REENCODE,
        )
    picture, turn = frame.to_image(), TURNS[degrees]
    return picture if turn is None else picture.transpose(turn)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream; what FFmpeg raises inside the block becomes a DataError."""
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file that can be read")
        refuse_truncated(path)
        # "file:", so that no name looks like a URL of another protocol.  Titles are not read: any bytes will do there.
        with av.open(f"file:{path}", options=OPEN_OPTIONS, metadata_errors="replace") as container:
            yield container, _video_stream(container, path)
    except DECODE_ERRORS as error:
        raise DataError(
            f"the video {path} cannot be decoded",
            got=f"{type(error).__name__}: {error}",
            expected=f"a whole file of {', '.join(CONTAINERS)}",
            remedy="replace the file, or skip the row",
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video stream; looks at the header only."""
    if not container.streams.video:
        raise DataError(f"the file {path} holds no video", remedy="replace the file, or skip the row")
    stream = container.streams.video[0]
    # None: FFmpeg has no decoder either.
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else None
    if codec not in CODECS:
        raise DataError(f"the video {path} has an unsupported codec", got=codec, expected=CODECS, remedy=REENCODE)
    width, height = stream.codec_context.width, stream.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"the video {path} has frames of an unusable size",
            got=f"{width} x {height} pixels",
            expected=f"1 to {MAX_PIXELS} pixels",
            remedy="scale it down, or skip the row",
        )
    # A damaged HEVC file of 3.7 kB locked FFmpeg's frame threads for ever (PyAV 18.1).
    stream.thread_count = 1
    # Later frames may ask the decoder for more than the header said.
    stream.codec_context.options = {"max_pixels": str(MAX_BUFFER_PIXELS)}
    return stream
