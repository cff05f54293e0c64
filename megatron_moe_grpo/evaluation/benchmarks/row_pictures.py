"""The pictures of a benchmark's row, however its files hold them."""

import ast
from collections.abc import Mapping
from pathlib import Path

from megatron_moe_grpo.data.embedded_image import base64_content, locate_image, store_image
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.visual_paths import resolve_visual_path
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.evaluation.benchmarks.row_values import RawRow


def pictures(raw: RawRow, image_root: Path, place: RowPlace) -> tuple[VisualFiles, ...]:
    """One visual a picture: `image` in base64 (a cell or a list of them), as bytes, or `image_path` under `image_root`.

    Raises DataError: neither, not base64, not a picture, a path that leaves the root.
    """
    if "image" not in raw:
        if "image_path" not in raw:
            raise place.problem("image", "the row has no picture", got=shown(list(raw)))
        paths = _listed(raw["image_path"], "image_path", place)
        return tuple(VisualFiles((resolve_visual_path(str(path), image_root, place, "image"),)) for path in paths)
    return tuple(VisualFiles((_stored(value, image_root, place),)) for value in _listed(raw["image"], "image", place))


def _stored(value: object, image_root: Path, place: RowPlace) -> Path:
    if isinstance(value, Mapping | bytes):
        return locate_image(value, image_root, place)
    if not isinstance(value, str):
        raise place.problem("image", "wrong type", got=shown(value), expected="base64, or bytes")
    return store_image(base64_content(value, place), place)


def _listed(value: object, key: str, place: RowPlace) -> list[object]:
    """The value, or the values of a list; a TSV cell spells a list as Python does.  It is parsed, never run."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise place.problem(key, "not a list of pictures", got=shown(value)) from error
    values = value if isinstance(value, list) else [value]
    if not values:
        raise place.problem(key, "an empty list of pictures")
    return values
