"""A checkpoint that carries code is refused by every reader before a byte of it runs, though its manifest fits.

What the payloads do is shown too: torch's own readers run them.  A payload that no longer runs there, after an update
of torch, fails its test: then look whether the allow-list is still needed.
"""

import contextlib
import copyreg
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.conversion.manifest import verify_manifest, write_manifest
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.mcore.pickle_allow_list import ENUM_MEMBERS, refuse_unsafe_pickles
from megatron_moe_grpo.mcore.resharding import Resharding
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import export_huggingface, load_model
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.inspection import inspect_folder
from megatron_moe_grpo.models.vlm import VisionLanguageModel

SHARD, CANARY = "__0_0.distcp", "canary"


@dataclass
class Calls:
    """Pickles as a call of `function`."""

    function: Any
    arguments: tuple

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def touch(canary: Path) -> Calls:
    return Calls(os.mkdir, (str(canary),))


def archive(value: object, **settings: bool) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **settings)
    return content.getvalue()


def read_metadata(checkpoint: Path) -> Metadata:
    return pickle.loads((checkpoint / "weights" / ".metadata").read_bytes())


def write_metadata(checkpoint: Path, content: object) -> None:
    (checkpoint / "weights" / ".metadata").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


def write_common(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "weights" / "common.pt").write_bytes(content)


def write_object(checkpoint: Path, content: bytes, key: str | None = None) -> None:
    """Puts `content` where `.metadata` finds the object `key`, or its first one."""
    metadata, shard = read_metadata(checkpoint), checkpoint / "weights" / SHARD
    if key is None:
        entries = metadata.state_dict_metadata
        key = next(name for name, entry in entries.items() if isinstance(entry, BytesStorageMetadata))
    metadata.state_dict_metadata[key] = BytesStorageMetadata()
    place = next(iter(metadata.storage_data.values()))
    metadata.storage_data[MetadataIndex(key)] = replace(place, offset=shard.stat().st_size, length=len(content))
    shard.write_bytes(shard.read_bytes() + content)
    write_metadata(checkpoint, metadata)


def in_planner_data(checkpoint: Path, canary: Path) -> None:
    """Deep inside an otherwise legitimate .metadata."""
    write_metadata(checkpoint, replace(read_metadata(checkpoint), planner_data={"a": [touch(canary)]}))


def chained(canary: Path) -> bytes:
    module = b"cimportlib\nimport_module\n(Vos\ntR"
    return b"cbuiltins\ngetattr\n(" + module + b"Vmkdir\ntR(V" + os.fsencode(canary) + b"\ntR."


def by_old_opcode(canary: Path) -> bytes:
    """INST names and calls at once."""
    return b"(S'" + os.fsencode(canary) + b"'\nios\nmkdir\n."


def by_dotted_name(canary: Path) -> bytes:
    """A name on the list, and an attribute of its module behind it."""
    path = os.fsencode(canary)
    name = b"\x8c\x13torch.serialization\x8c\x08os.mkdir\x93"
    return b"\x80\x04" + name + b"\x8c" + bytes([len(path)]) + path + b"\x85R."


def by_extension_code(canary: Path) -> bytes:
    """A number that was given to a function before."""
    path = os.fsencode(canary)
    return b"\x80\x04\x82\xf0\x8c" + bytes([len(path)]) + path + b"\x85R."


def changes_a_class(canary: Path) -> bytes:
    """No call that is forbidden: sets an attribute of a class that torch uses afterwards."""
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    return b"\x80\x02" + name + b"N}V__reduce__\nctorch\nSize\ns\x86b."


def tar_file(canary: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        pickled = pickle.dumps(touch(canary))
        entry = tarfile.TarInfo("pickle")
        entry.size = len(pickled)
        tar.addfile(entry, io.BytesIO(pickled))
    return content.getvalue()


def torch_script() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), content)
    return content.getvalue()


def as_bytes_tensor(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def from_another_folder(checkpoint: Path, canary: Path) -> None:
    metadata = read_metadata(checkpoint)
    index, place = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = replace(place, relative_path="../../secret.distcp")
    (checkpoint.parent / "secret.distcp").write_bytes((checkpoint / "weights" / SHARD).read_bytes())
    write_metadata(checkpoint, metadata)


def transformed(checkpoint: Path, canary: Path) -> None:
    metadata = read_metadata(checkpoint)
    index, place = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = replace(place, transform_descriptors=["stream.zstd"])
    write_metadata(checkpoint, metadata)


def calls_a_class(checkpoint: Path, canary: Path) -> None:
    """Fields that are given in a call, and not as a state, would not be looked at."""
    metadata = read_metadata(checkpoint)
    index = next(iter(metadata.storage_data))
    metadata.storage_data[index] = Calls(_StorageInfo, ("../../secret.distcp", 0, 10))
    write_metadata(checkpoint, metadata)


def another_backend(checkpoint: Path, canary: Path) -> None:
    path = checkpoint / "weights" / "metadata.json"
    path.write_text(path.read_text(encoding="utf-8").replace("torch_dist", "zarr"), encoding="utf-8")


def object_array(canary: Path) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = touch(canary)
    return array


# Name -> (what puts it into the checkpoint, whether torch's readers run it, a part of the refusal).
PAYLOADS: dict[str, tuple[Callable[[Path, Path], None], bool, str]] = {
    "metadata_is_a_call": (lambda c, canary: write_metadata(c, touch(canary)), True, "mkdir"),
    "metadata_eval": (
        lambda c, canary: write_metadata(c, Calls(eval, (f"__import__('os').mkdir({str(canary)!r})",))),
        True, "builtins.eval",
    ),
    "metadata_exec": (
        lambda c, canary: write_metadata(c, Calls(exec, (f"import os; os.mkdir({str(canary)!r})",))),
        True, "builtins.exec",
    ),
    "metadata_planner_data": (in_planner_data, True, "mkdir"),
    "metadata_getattr_chain": (lambda c, canary: write_metadata(c, chained(canary)), True, "importlib.import_module"),
    "metadata_getattr_of_an_enum": (
        lambda c, canary: write_metadata(c, Calls(getattr, (WriteItemType, "__init_subclass__"))), False,
        "builtins.getattr of",
    ),
    "metadata_getattr_of_another_class": (
        lambda c, canary: write_metadata(c, Calls(getattr, (Metadata, "TENSOR"))), False, "builtins.getattr of",
    ),
    "metadata_getattr_of_a_text": (
        lambda c, canary: write_metadata(c, Calls(getattr, ("{0}", "format"))), False, "builtins.getattr of",
    ),
    "common_getattr": (
        lambda c, canary: write_common(c, archive(Calls(getattr, (WriteItemType, "TENSOR")))), False, ".getattr",
    ),
    "metadata_old_opcode": (lambda c, canary: write_metadata(c, by_old_opcode(canary)), True, "os.mkdir"),
    "metadata_dotted_name": (lambda c, canary: write_metadata(c, by_dotted_name(canary)), True, "os.mkdir"),
    "metadata_extension_code": (lambda c, canary: write_metadata(c, by_extension_code(canary)), True, "mkdir"),
    "metadata_changes_a_class": (lambda c, canary: write_metadata(c, changes_a_class(canary)), False, "__setstate__"),
    "metadata_calls_a_class": (calls_a_class, False, "_StorageInfo is called"),
    "metadata_nested_pickle": (
        lambda c, canary: write_metadata(c, Calls(pickle.loads, (pickle.dumps(touch(canary)),))), True, "_pickle.loads",
    ),
    "metadata_names_another_folder": (from_another_folder, False, "no shard of this checkpoint"),
    "metadata_transforms": (transformed, False, "is not what training writes"),
    "other_backend": (another_backend, False, "names another format"),
    "common_call": (lambda c, canary: write_common(c, archive({"a": touch(canary)})), True, "mkdir"),
    "common_load_from_bytes": (
        lambda c, canary: write_common(
            c, archive(Calls(torch.storage._load_from_bytes, (archive(touch(canary)),)))
        ),
        True, "torch.storage._load_from_bytes",
    ),
    "common_numpy_objects": (lambda c, canary: write_common(c, archive(object_array(canary))), True, "numpy"),
    "common_old_format": (
        lambda c, canary: write_common(c, archive(touch(canary), _use_new_zipfile_serialization=False)),
        True, "not what torch.save writes",
    ),
    "common_tar": (lambda c, canary: write_common(c, tar_file(canary)), False, "not what torch.save writes"),
    "common_torch_script": (lambda c, canary: write_common(c, torch_script()), False, "not what torch.save writes"),
    "object_call": (lambda c, canary: write_object(c, archive([touch(canary)])), True, "mkdir"),
    "object_plain_pickle": (
        lambda c, canary: write_object(c, pickle.dumps(touch(canary))), False, "not what torch.save writes",
    ),
    "object_in_place_of_a_weight": (
        lambda c, canary: write_object(c, archive([touch(canary)]), "language_model.decoder.final_layernorm.weight"),
        True, "never loaded",
    ),
    "object_that_nothing_asks_for": (
        lambda c, canary: write_object(c, archive([touch(canary)]), "more"), True, "mkdir",
    ),
    "extra_state_bytes_tensor": (
        lambda c, canary: write_object(c, archive([as_bytes_tensor(touch(canary))])), False, "would unpickle it",
    ),
    "extra_state_bytes_io": (
        lambda c, canary: write_object(c, archive([io.BytesIO(pickle.dumps(touch(canary)))])), False, "_io.BytesIO",
    ),
    "extra_state_bytes": (
        lambda c, canary: write_object(c, archive([pickle.dumps(touch(canary))])), False, "",
    ),
}  # fmt: skip


def export(checkpoint: Path) -> None:
    export_huggingface(checkpoint, checkpoint.parent / "out")


def reshard(checkpoint: Path) -> None:
    def build_stage(layout: ParallelLayout) -> VisionLanguageModel:
        config = read_hf_config(checkpoint / "assets")
        return build_model(config, ParallelConfig(), "fp32", layout.is_first_stage, layout.is_last_stage)

    Resharding(checkpoint, ParallelConfig(), build_stage).write(checkpoint.parent / "out")


def load(checkpoint: Path) -> None:
    """As training, `evaluate` and the reference policy do."""
    start_parallel(ParallelConfig(), seed=0)
    try:
        load_model(checkpoint)
    finally:
        stop_parallel()


def inspect(checkpoint: Path) -> None:
    problems = inspect_folder(checkpoint).problems
    if problems:
        raise CheckpointError("\n".join(problems))


def load_as_torch_does(checkpoint: Path) -> None:
    """The three calls of torch and Megatron that unpickle."""
    weights = checkpoint / "weights"
    torch.load(weights / "common.pt", weights_only=False)
    metadata = FileSystemReader(weights).read_metadata()
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            content = (weights / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
            torch.load(io.BytesIO(content), weights_only=False)


READERS = {"export": export, "reshard": reshard, "load": load, "inspect": inspect}


@pytest.fixture
def checkpoint(moe_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(moe_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(autouse=True)
def _extension_code() -> Any:
    copyreg.add_extension("posix", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("posix", "mkdir", 0xF0)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_refused_by_every_reader_and_never_runs(payload: str, checkpoint: Path) -> None:
    plant, runs_in_torch, message = PAYLOADS[payload]
    canary = checkpoint.parent / CANARY
    plant(checkpoint, canary)
    write_manifest(checkpoint)
    verify_manifest(checkpoint)
    for read in READERS.values():
        with pytest.raises(CheckpointError, match=r"weights/(\.metadata|common\.pt|metadata\.json|__0_0)") as caught:
            read(checkpoint)
        assert message in str(caught.value)
        assert not canary.exists()
    assert not (checkpoint.parent / "out").exists()
    if runs_in_torch:
        # What was called gave back no checkpoint.
        with contextlib.suppress(Exception):
            load_as_torch_does(checkpoint)
        assert canary.exists(), "torch no longer runs it"


def test_the_untouched_checkpoint_is_read_by_all(checkpoint: Path) -> None:
    load(checkpoint)
    inspect(checkpoint)
    export(checkpoint)
    shutil.rmtree(checkpoint.parent / "out")
    reshard(checkpoint)


class AsOlderPython(pickle.Pickler):
    """Writes members of enums as Python 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_a_checkpoint_of_an_older_python_is_read(checkpoint: Path) -> None:
    """Debian 12 has 3.11.2."""
    content = io.BytesIO()
    AsOlderPython(content).dump(read_metadata(checkpoint))
    assert b"getattr" in content.getvalue()
    write_metadata(checkpoint, content.getvalue())
    write_manifest(checkpoint)
    for read in (load, inspect, export):
        read(checkpoint)


def test_the_enums_have_the_members_on_the_list() -> None:
    found = {
        f"{kind.__module__}.{kind.__name__}": set(kind.__members__) for kind in (_MEM_FORMAT_ENCODING, WriteItemType)
    }
    assert found == ENUM_MEMBERS


def test_what_transformer_engine_and_a_fused_adam_write_passes(checkpoint: Path) -> None:
    """An `_extra_state` without FP8 is a tensor without values; a fused Adam's step is a tensor of one."""
    write_object(checkpoint, archive([torch.empty(0, dtype=torch.uint8)]))
    common = torch.load(checkpoint / "weights" / "common.pt", weights_only=True)
    write_common(checkpoint, archive(common | {"step": torch.tensor([3], dtype=torch.int32)}))
    refuse_unsafe_pickles(checkpoint / "weights")


@pytest.mark.parametrize("file", [".metadata", "common.pt", "metadata.json"])
def test_every_damage_is_a_refusal_and_no_crash(file: str, checkpoint: Path) -> None:
    """40 seeded cuts and flips; what still passes is what nothing reads, such as a checksum of the archive."""
    path, generator = checkpoint / "weights" / file, np.random.default_rng(1)
    content = path.read_bytes()
    num_refused = 0
    for trial in range(40):
        place = int(generator.integers(len(content)))
        flipped = bytes([content[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(content[:place] if trial % 2 else content[:place] + flipped + content[place + 1 :])
        try:
            refuse_unsafe_pickles(checkpoint / "weights")
        except CheckpointError:
            num_refused += 1
    assert num_refused >= 20
