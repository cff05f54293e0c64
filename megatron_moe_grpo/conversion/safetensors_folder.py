"""The weights of a Hugging Face folder as a source: one safetensors file, or the shards that an index names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.conversion.tensor_bytes import DTYPES, num_bytes_of, view_of_bytes
from megatron_moe_grpo.conversion.weight_formats import quantised_weights, refuse_adapters, refuse_other_formats
from megatron_moe_grpo.errors import ConversionError

WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Numbers of a byte or less, of which torch has some only.
CODES = ("F4", "F6", "F8")
# A parser's memory is 16 times its text.  Real headers take about 130 bytes a tensor: 30,000 tensors in one file.
MAX_HEADER_BYTES = 4 * 2**20
MAX_INDEX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes lie."""

    path: Path
    offset: int
    shape: Shape
    dtype: torch.dtype


class SafetensorsFolder:
    """Named tensors of a folder, read one at a time; never more in memory than the tensor that is asked for.

    Headers are checked by the safetensors library: no hole, no overlap, nothing past the end of the file.

    Raises:
        ConversionError: no safetensors, a missing or damaged file, or an index that does not tell the truth.
    """

    def __init__(self, folder: Path):
        refuse_adapters(folder)
        key_to_file = _read_index(folder)
        self.paths = [folder / name for name in sorted(set(key_to_file.values()))] or [folder / WEIGHT_FILE]
        """The weight files, in the order of their names."""
        _refuse_missing_files(folder, self.paths)
        shards = {path.name: _read_header(path) for path in self.paths}
        if key_to_file:
            _check_index(key_to_file, shards)
        self._places = {name: place for places in shards.values() for name, place in places.items()}
        self.shapes: Mapping[str, Shape] = {name: place.shape for name, place in self._places.items()}
        self.dtypes: Mapping[str, torch.dtype] = {name: place.dtype for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of that name, in memory of its own."""
        place = self._places[name]
        values = torch.empty(num_bytes_of(place.shape, place.dtype), dtype=torch.uint8)
        # Plain reads, not a mapped file: pages of a mapping count as this process's memory until the kernel wants them.
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            rest = view_of_bytes(values)
            while len(rest) > 0:
                num_read = file.readinto(rest)
                if not num_read:
                    raise _damaged(place.path, f"it ends within {name}")
                rest = rest[num_read:]
        return values.view(place.dtype).reshape(place.shape)


def _read_index(folder: Path) -> dict[str, str]:
    """Key -> shard file, empty without an index; file names must stay inside the folder."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return {}
    if (folder / WEIGHT_FILE).is_file():
        raise ConversionError(
            "Two sets of weights stand in one folder.",
            got=f"{folder}: {WEIGHT_FILE} and {INDEX_FILE}",
            expected="one of them",
            remedy="delete the one you do not mean, with its shards",
        )
    try:
        _refuse_larger(path, MAX_INDEX_BYTES, path.stat().st_size)
        key_to_file = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in key_to_file.values() if Path(name).name != name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConversionError("The index of the weight files cannot be read.", got=f"{path}: {error!r}") from error
    if outside:
        raise ConversionError("The index names files outside the folder.", got=f"{path}: {_some(outside)}")
    if not key_to_file:
        raise ConversionError("The index of the weight files is empty.", got=path)
    return key_to_file


def _refuse_missing_files(folder: Path, paths: list[Path]) -> None:
    missing = [path.name for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        refuse_other_formats(folder)
    if missing:
        raise ConversionError(
            "Weight files are missing.",
            got=f"{folder} lacks {_some(missing)}",
            expected=f"{WEIGHT_FILE}, or every shard that {INDEX_FILE} names",
            remedy="copy or download the folder again",
        )


def _read_header(path: Path) -> dict[str, _Place]:
    """Where each tensor of the file lies, in the order of the file."""
    try:
        num_file_bytes = path.stat().st_size
        with path.open("rb") as file:
            _refuse_larger(path, MAX_HEADER_BYTES, int.from_bytes(file.read(8), "little"))
        with safe_open(path, framework="pt") as file:
            slices = ((name, file.get_slice(name)) for name in file.offset_keys())
            described = [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    unknown = [f"{name}: {dtype}" for name, _, dtype in described if dtype not in DTYPES]
    codes = [f"{name} {dtype}" for name, _, dtype in described if dtype not in DTYPES and dtype.startswith(CODES)]
    if codes:
        raise quantised_weights(codes)
    if unknown:
        raise ConversionError(
            "A weight file holds numbers that this program does not know.",
            got=f"{path}: {_some(unknown)}",
            expected=f"one of {', '.join(DTYPES)}",
        )
    # The library has checked that the tensors fill the file from the header's end to the file's end without a hole.
    sizes = [num_bytes_of(shape, DTYPES[dtype]) for _, shape, dtype in described]
    offset = num_file_bytes - sum(sizes)
    places = {}
    for (name, shape, dtype), num_bytes in zip(described, sizes, strict=True):
        places[name] = _Place(path, offset, shape, DTYPES[dtype])
        offset += num_bytes
    return places


def _check_index(key_to_file: Mapping[str, str], shards: Mapping[str, Mapping[str, _Place]]) -> None:
    """The index and the shards must say the same of every key."""
    found: dict[str, list[str]] = {}
    for file, places in shards.items():
        for name in places:
            found.setdefault(name, []).append(file)
    twice = [f"{name} in {' and '.join(files)}" for name, files in found.items() if len(files) > 1]
    lost = [f"{name} should be in {file}" for name, file in key_to_file.items() if name not in found]
    unlisted = [f"{name} in {files[0]}" for name, files in found.items() if name not in key_to_file]
    elsewhere = [
        f"{name} is in {found[name][0]}, not in {file}"
        for name, file in key_to_file.items()
        if name in found and found[name] != [file]
    ]
    for what, problems in (
        ("Weights stand in two shards.", twice),
        ("Weights named by the index are in no shard.", lost),
        ("Weights are in another shard than the index says.", elsewhere),
        ("Shards hold weights that the index does not name.", unlisted),
    ):
        if problems:
            raise ConversionError(
                what,
                got=_some(problems),
                expected=f"what {INDEX_FILE} says",
                remedy="copy or download the folder again",
            )


def _refuse_larger(path: Path, limit: int, num_bytes: int) -> None:
    if num_bytes > limit:
        raise ValueError(f"a header of {num_bytes:,} bytes, more than the {limit:,} that any real one has")


def _damaged(path: Path, why: str) -> ConversionError:
    return ConversionError("A weight file is damaged.", got=f"{path}: {why}", remedy="copy or download it again")


def _some(names: list[str], limit: int = 20) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
