"""Tables of `datasets`: a folder written by `save_to_disk`, or a name of the hub, whose code is never run."""

import re
from functools import partial
from pathlib import Path

import datasets

from megatron_moe_grpo.data.files.raw_rows import RawRows
from megatron_moe_grpo.errors import DataError

HUB_PREFIX = "hub:"
# Nothing that `load_dataset` could take for a path.
HUB_NAME = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*):([\w.-]+)")


def saved_rows(folder: Path) -> RawRows:
    """Rows of one split.  Raises DataError: not a folder written by `Dataset.save_to_disk`."""
    if not (folder / "state.json").is_file():
        raise DataError(
            f"{folder} is not a folder written by Dataset.save_to_disk",
            expected="state.json in it",
            remedy="save one split: dataset['train'].save_to_disk(FOLDER)",
        )
    return _table_rows(datasets.load_from_disk(str(folder)))


def hub_rows(source: str) -> RawRows:
    """Rows of "hub:NAME:SPLIT", downloaded into `datasets`' own cache the first time.

    Raises DataError: not of this form, or the hub does not give it (no network, unknown name or split).
    """
    match = HUB_NAME.fullmatch(source)
    if match is None:
        raise DataError("not a name on the hub", got=source, expected=f"{HUB_PREFIX}OWNER/NAME:SPLIT")
    name, split = match.groups()
    try:
        table = datasets.load_dataset(name, split=split)
    # OSError: no network, no such name; ValueError: no such split; DatasetsError: files that do not fit together;
    # RuntimeError: a set that needs its own code, which datasets 4 and later cannot run.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the split {split} of {name} cannot be loaded from the hub",
            got=f"{type(error).__name__}: {error}",
            remedy="where there is a network: datasets.load_dataset(NAME, split=...).save_to_disk(FOLDER), then give "
            "FOLDER",
        ) from error
    return _table_rows(table)


def _table_rows(table: datasets.Dataset) -> RawRows:
    # Pictures stay {bytes, path}: `embedded_image.py` checks them before anything decodes them.
    for name, feature in table.features.items():
        if _holds_pictures(feature):
            table = table.cast_column(name, _undecoded(feature))
    for index in range(len(table)):
        yield index + 1, partial(table.__getitem__, index)


def _holds_pictures(feature: object) -> bool:
    item = feature.feature if isinstance(feature, datasets.List) else feature
    return isinstance(item, datasets.Image)


def _undecoded(feature: object) -> datasets.Image | datasets.List:
    picture = datasets.Image(decode=False)
    return datasets.List(picture) if isinstance(feature, datasets.List) else picture
