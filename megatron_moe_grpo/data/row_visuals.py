"""Which pictures and videos a row shows, in the order in which its question shows them.

* `image`: a picture, or a list of pictures; `images`: a list of pictures; each a path, or bytes (`embedded_image.py`);
* `video`: the path of a video file, or the list of paths of ONE video's frames; `videos`: a list of such.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_moe_grpo.data.embedded_image import locate_image
from megatron_moe_grpo.data.options import IMAGE_TAG, VIDEO_TAG
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import as_texts
from megatron_moe_grpo.data.visual_paths import resolve_visual_path
from megatron_moe_grpo.data.visuals import VisualFiles

# The paper shows up to 8 images; a row's videos have a bound too because every one is decoded before training starts.
MAX_OF_A_KIND = 8
# A minute of video at 60 frames a second; only the sampled frames are ever opened.
MAX_FRAME_PATHS = 3600
TAG = re.compile(f"{re.escape(IMAGE_TAG)}|{re.escape(VIDEO_TAG)}")


def read_row_visuals(
    raw: Mapping[str, Any], problem: str, image_root: Path, place: RowPlace
) -> tuple[VisualFiles, ...]:
    """The row's visuals in reading order: the k-th <image> tag is the k-th image, the k-th <video> the k-th video.

    Without any tag the visuals come before the question, images before videos.  Files are located, not opened.
    Raises DataError: both spellings of a field, wrong types, too many, a bad path, tags that are not as many as files.
    """
    images = [VisualFiles((locate_image(value, image_root, place),)) for value in _image_values(raw, place)]
    videos = [_video(texts, image_root, place) for texts in _video_texts(raw, place)]
    tags = TAG.findall(problem)
    if not tags:
        return tuple(images + videos)
    _refuse_wrong_number(IMAGE_TAG, tags.count(IMAGE_TAG), len(images), place)
    _refuse_wrong_number(VIDEO_TAG, tags.count(VIDEO_TAG), len(videos), place)
    of_kind = {IMAGE_TAG: iter(images), VIDEO_TAG: iter(videos)}
    return tuple(next(of_kind[tag]) for tag in tags)


def _video(texts: list[str], image_root: Path, place: RowPlace) -> VisualFiles:
    paths = tuple(resolve_visual_path(text, image_root, place, "video") for text in texts)
    return VisualFiles(paths, is_video=True)


def _refuse_wrong_number(tag: str, num_tags: int, num_files: int, place: RowPlace) -> None:
    if num_tags != num_files:
        kind = tag.strip("<>")
        raise place.problem(
            "problem",
            f"the number of {tag} tags is not the number of {kind}s",
            got=f"{num_tags} tags, {num_files} {kind}s",
            remedy=f"write one {tag} for every {kind}, or no tags at all",
        )


def _image_values(raw: Mapping[str, Any], place: RowPlace) -> list[Any]:
    key = _given_key(raw, "image", place)
    if key is None:
        return []
    value = raw[key]
    return _few(value if isinstance(value, list) else [value], key, place)


def _video_texts(raw: Mapping[str, Any], place: RowPlace) -> list[list[str]]:
    """Paths of each video: one of a video file, or those of its frames."""
    key = _given_key(raw, "video", place)
    if key is None:
        return []
    value = [raw[key]] if key == "video" else raw[key]
    if not isinstance(value, list):
        raise place.problem(key, "wrong type", got=shown(value), expected="a list of videos")
    videos = [as_texts([video] if isinstance(video, str) else video, key, place) for video in _few(value, key, place)]
    for paths in videos:
        if not 1 <= len(paths) <= MAX_FRAME_PATHS:
            raise place.problem(
                key, "not a usable number of frames", got=len(paths), expected=f"1 to {MAX_FRAME_PATHS} paths a video"
            )
    return videos


def _given_key(raw: Mapping[str, Any], kind: Literal["image", "video"], place: RowPlace) -> str | None:
    given = [key for key in (kind, f"{kind}s") if raw.get(key) is not None]
    if len(given) == 2:
        raise place.problem(f"{kind}s", f"given beside {kind}", remedy="keep one of the two")
    return given[0] if given else None


def _few(values: list[Any], key: str, place: RowPlace) -> list[Any]:
    if len(values) > MAX_OF_A_KIND:
        kind = key.rstrip("s")
        raise place.problem(key, f"too many {kind}s", got=len(values), expected=f"at most {MAX_OF_A_KIND}")
    return values
