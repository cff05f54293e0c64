"""Whether a video file is as long as its own header says.

FFmpeg reads a Matroska, WebM, AVI or GIF file that was cut off as a shorter clip and says nothing.  A cut mp4 lacks its
index or has a packet that is marked as damaged, so it needs no check here.
"""

from pathlib import Path

from megatron_moe_grpo.errors import DataError

EBML_ID = bytes.fromhex("1a45dfa3")
SEGMENT_ID = bytes.fromhex("18538067")
HEADER_BYTES = 4096


def refuse_truncated(path: Path) -> None:
    """Raises DataError if the file ends before the length in its header, or a GIF without its end mark."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        file.seek(max(0, num_bytes - 1))
        last = file.read(1)
    expected = _declared_bytes(header)
    if num_bytes < expected or (header.startswith(b"GIF8") and last != b";"):
        raise DataError(
            f"the video {path} is truncated",
            got=f"{num_bytes} bytes",
            expected=f"{expected} bytes" if expected else "a last byte 0x3B",
            remedy="replace the file, or skip the row",
        )


def _declared_bytes(header: bytes) -> int:
    """Length of the file as a RIFF or Matroska header gives it; 0 if it gives none."""
    if header.startswith(b"RIFF"):
        return int.from_bytes(header[4:8], "little") + 8
    if not header.startswith(EBML_ID):
        return 0
    size, start = _ebml_size(header, len(EBML_ID))
    segment = start + size
    if header[segment : segment + len(SEGMENT_ID)] != SEGMENT_ID:
        return 0
    size, start = _ebml_size(header, segment + len(SEGMENT_ID))
    return start + size


def _ebml_size(header: bytes, position: int) -> tuple[int, int]:
    """(value, position after it) of a variable-length number, RFC 8794 4.4; 0 for "unknown", as in live streams."""
    field = header[position : position + 8]
    if not field or field[0] == 0:
        return 0, position
    length = 9 - field[0].bit_length()
    value = int.from_bytes(field[:length], "big") - (1 << 7 * length)
    is_unknown = value == (1 << 7 * length) - 1
    return 0 if is_unknown else value, position + length
