"""The pickles of a checkpoint are read with stand-ins first: what is not on a short list is refused by its name.

A manifest tells that nothing has changed, not who wrote it.  Where torch 2.13 and Megatron-Core 0.16.1 unpickle:

* `.metadata`: plain pickle, in torch/distributed/checkpoint/filesystem.py `FileSystemReader.read_metadata`.
* objects inside `.distcp` files (Megatron's `_extra_state`, and whatever `.metadata` calls bytes, also under the name
  of a weight): `torch.load(weights_only=False)` in torch/distributed/checkpoint/default_planner.py `load_bytes`.
* `common.pt`: `torch.load` in megatron/core/dist_checkpointing/strategies/common.py, restricted unless the environment
  says TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD; megatron/core/safe_globals.py widens what it then takes.
* inside an `_extra_state`, Transformer Engine's own pickle: megatron/core/extensions/transformer_engine.py
  `_decode_extra_state`.  Only empty ones pass here.
* tensors inside `.distcp` files: always `weights_only=True`.  They are left to torch.

`metadata.json` names the code that reads the rest, so it must name the usual one.  The bytes that are checked are those
that are loaded, cut out by the same reader of archives: two readers of one zip may see two contents.
"""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from megatron_moe_grpo.errors import CheckpointError

DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
METADATA_MODULE = "torch.distributed.checkpoint.metadata"
BYTES_ENTRY, TENSOR_ENTRY = f"{METADATA_MODULE}.BytesStorageMetadata", f"{METADATA_MODULE}.TensorStorageMetadata"
METADATA_GLOBALS = frozenset(
    {
        *(f"torch.{dtype}" for dtype in DTYPES),
        "torch.Size",
        "torch.serialization._get_layout",
        # Where torch's own `save` once wrote it; nothing opens that.
        "pathlib.PosixPath",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        BYTES_ENTRY,
        TENSOR_ENTRY,
        *(
            f"{METADATA_MODULE}.{name}"
            for name in (
                "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        # What Megatron adds: the plan by which each rank wrote.
        *(
            f"torch.distributed.checkpoint.planner.{name}"
            for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
        ),
    }
)  # fmt: skip
# A checkpoint of ours has plain values only; a fused Adam keeps its step in a tensor, Transformer Engine an empty one.
ARCHIVE_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        *(f"torch.{kind}Storage" for kind in ("Float", "Int", "Long", "Byte")),
    }
)
COMMON_RECORDS = {".format_version", ".storage_alignment", "byteorder", "version", ".data/serialization_id"}
COMMON, FORMAT_FILE = "common.pt", "metadata.json"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# Those of the lists that pickles call; the others are made empty and given their fields.
CALLED = {
    "torch.Size",
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
    f"{METADATA_MODULE}._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.planner.WriteItemType",
    "torch._utils._rebuild_tensor_v2",
}
# Python 3.11.2 (Debian 12) pickles a member of an enum as getattr(enum, name): allowed for these, and nothing else.
GETATTR = "builtins.getattr"
ENUM_MEMBERS = {
    f"{METADATA_MODULE}._MEM_FORMAT_ENCODING": {
        "TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT",
    },
    "torch.distributed.checkpoint.planner.WriteItemType": {"TENSOR", "SHARD", "BYTE_IO"},
}  # fmt: skip
ZIP_START = b"PK\x03\x04"


def refuse_unsafe_pickles(weights: Path) -> None:
    """Returns if every pickle in the folder `weights` of a checkpoint holds nothing but what training writes.

    Raises:
        CheckpointError: with the file and the name that is not on the list; nothing was imported or called.
    """
    if (weights / FORMAT_FILE).is_file():
        _refuse_other_format(weights / FORMAT_FILE)
    if (weights / COMMON).is_file():
        _check_archive(_content(weights / COMMON), f"weights/{COMMON}", may_hold_values=True)
    metadata = _read(_Reader(_content(weights / ".metadata"), METADATA_GLOBALS), "weights/.metadata")
    checked = set()
    for key, content, name in _stored_objects(weights, metadata):
        # An object a layer and expert, and all of them alike.
        if content not in checked:
            _check_archive(content, f"{name}, object {key}", may_hold_values=False)
            checked.add(content)


class _StandIn:
    """Takes the place of whatever a pickle names; remembers the fields that it is given."""

    def __new__(cls, *args: object) -> "_StandIn":
        if args and cls.__name__ not in CALLED:
            raise pickle.UnpicklingError(f"{cls.__name__} is called")
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        # A pair would set attributes one by one, `__class__` included; one class of the list takes tuples by itself.
        # A pickle that changes a class instead of an object fails here too: this method lacks its object.
        if isinstance(state, dict):
            self.fields |= state
        elif type(self).__name__ != f"{METADATA_MODULE}.TensorProperties":
            raise pickle.UnpicklingError(f"{type(self).__name__} with a state that is no dictionary")


class _EnumMember:
    """Takes the place of getattr."""

    __slots__ = ()

    def __call__(self, owner: object, name: object) -> object:
        members = ENUM_MEMBERS.get(owner.__name__, set()) if isinstance(owner, type) else set()
        if not isinstance(name, str) or name not in members:
            raise pickle.UnpicklingError(f"{GETATTR} of {owner!r} and {name!r}"[:200])
        return owner()


class _Reader(pickle.Unpickler):
    """Asks the list for every name, however the pickle spells it; imports nothing."""

    def __init__(self, content: bytes, allowed: frozenset[str]):
        super().__init__(io.BytesIO(content))
        self._allowed = allowed
        self._stand_ins: dict[str, type] = {}
        self.num_values = 0
        self.refused = ""

    def find_class(self, module: str, name: str) -> object:
        full_name = f"{module}.{name}"
        if full_name == GETATTR and ENUM_MEMBERS.keys() <= self._allowed:
            return _EnumMember()
        if full_name not in self._allowed:
            self.refused = full_name
            raise pickle.UnpicklingError(full_name)
        if full_name not in self._stand_ins:
            self._stand_ins[full_name] = type(full_name, (_StandIn,), {})
        return self._stand_ins[full_name]

    def persistent_load(self, pid: Any) -> object:
        """A tensor's storage, as torch.save refers to it: ("storage", kind, key, device, number of values)."""
        label, _, _, _, num_values = pid
        if label != "storage" or type(num_values) is not int or num_values < 0:
            raise pickle.UnpicklingError("a reference to something that is no storage")
        self.num_values += num_values
        return None


def _read(reader: _Reader, name: str) -> Any:
    try:
        return reader.load()
    # A made-up pickle can fail in any way, and each of them means the same.
    except Exception as error:
        if reader.refused:
            _refuse(f"{name} names something that is never loaded, because it could run code", reader.refused)
        _refuse(f"{name} is not what training writes", f"{type(error).__name__}: {error}"[:200])


def _check_archive(content: bytes, name: str, *, may_hold_values: bool) -> None:
    """What `torch.save` wrote, and no other format that `torch.load` takes: old pickles, tar files, TorchScript."""
    if not content.startswith(ZIP_START):
        _refuse(f"{name} is not what torch.save writes", f"a file that starts with {content[:8]!r}")
    try:
        archive = torch._C.PyTorchFileReader(io.BytesIO(content))
        records = archive.get_all_records()
        pickled = archive.get_record("data.pkl")
    except RuntimeError as error:
        _refuse(f"{name} is not what torch.save writes", str(error).splitlines()[0][:200])
    others = [record for record in records if record not in COMMON_RECORDS and not record.startswith("data/")]
    if others != ["data.pkl"]:
        _refuse(f"{name} is not what torch.save writes", f"an archive with {', '.join(others[:5])}")
    reader = _Reader(pickled, ARCHIVE_GLOBALS)
    value = _read(reader, name)
    is_empty = isinstance(value, list) and all(item is None or isinstance(item, _StandIn) for item in value)
    if not may_hold_values and (reader.num_values or not is_empty):
        _refuse(f"{name} is not empty: its owner would unpickle it", f"{reader.num_values:,} values in {value!r}"[:200])


def _stored_objects(weights: Path, metadata: Any) -> Iterator[tuple[str, bytes, str]]:
    """(Key, bytes, file) of everything that the loader would not read as a tensor."""
    if not isinstance(metadata, _StandIn) or type(metadata).__name__ != f"{METADATA_MODULE}.Metadata":
        _refuse("weights/.metadata is not what training writes", f"a {type(metadata).__name__}")
    entries, places = metadata.fields.get("state_dict_metadata"), metadata.fields.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(places, dict):
        _refuse("weights/.metadata is not what training writes", "no list of what is stored where")
    kinds = {key: type(entry).__name__ for key, entry in entries.items()}
    if unknown := set(kinds.values()) - {BYTES_ENTRY, TENSOR_ENTRY}:
        _refuse("weights/.metadata is not what training writes", f"an entry that is {', '.join(sorted(unknown))}")
    for index, place in places.items():
        key, name, offset, length = _place_of(index, place)
        if kinds.get(key) != TENSOR_ENTRY:
            content = _content(weights / name, offset, length)
            if len(content) != length:
                _refuse(
                    "weights/.metadata names a place behind the end of a file", f"{length} bytes at {offset}, {name}"
                )
            yield key, content, f"weights/{name}"


def _place_of(index: Any, place: Any) -> tuple[str, str, int, int]:
    """Key, and where it is said to stand: a file of the folder itself, not transformed in any way."""
    if not isinstance(index, _StandIn) or not isinstance(place, _StandIn):
        _refuse("weights/.metadata is not what training writes", f"a place that is {place!r}"[:200])
    key, name = index.fields.get("fqn"), place.fields.get("relative_path")
    offset, length = place.fields.get("offset"), place.fields.get("length")
    is_plain = isinstance(key, str) and isinstance(name, str) and type(offset) is int and type(length) is int
    if not is_plain or min(offset, length) < 0 or place.fields.get("transform_descriptors"):
        _refuse("weights/.metadata is not what training writes", f"{key!r} at {place.fields}"[:200])
    if Path(name).name != name or not name.endswith(".distcp"):
        _refuse("weights/.metadata names a file that is no shard of this checkpoint", name)
    return key, name, offset, length


def _content(path: Path, offset: int = 0, length: int = -1) -> bytes:
    if not path.is_file():
        _refuse("the checkpoint lacks a file", f"no weights/{path.name}")
    with path.open("rb") as file:
        file.seek(offset)
        # Not more than there is: a made-up length would be allocated first.
        return file.read(min(length, path.stat().st_size))


def _refuse_other_format(path: Path) -> None:
    try:
        found = json.loads(_content(path).decode("utf-8"))
    except ValueError as error:
        _refuse("weights/metadata.json is no JSON", str(error))
    if found != FORMAT:
        _refuse("weights/metadata.json names another format", str(found)[:200])


def _refuse(what: str, got: str) -> NoReturn:
    raise CheckpointError(
        what,
        got=got,
        expected="a checkpoint that this project wrote",
        remedy="do not use it unless you know who made it; an exported Hugging Face folder holds no pickles",
    )
