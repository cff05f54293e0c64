"""Writes a source into safetensors files, one tensor in memory at a time, with the SHA-256 of what was written."""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_moe_grpo.conversion.hashed_file import HashedFile
from megatron_moe_grpo.conversion.progress import Progress, no_progress
from megatron_moe_grpo.conversion.tensor_bytes import DTYPES, num_bytes_of, view_of_bytes
from megatron_moe_grpo.conversion.tensor_source import TensorSource

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, source: TensorSource, names: Sequence[str], progress: Progress = no_progress) -> str:
    """Writes the named tensors of `source`, flushed to disk, as the safetensors library would.  Returns the SHA-256.

    Tensors are read in the order given, except that those of wider numbers come first: the format wants them aligned.
    """
    ordered = sorted(names, key=lambda name: -source.dtypes[name].itemsize)
    with HashedFile(path) as file:
        file.write(_header(source, ordered))
        for name in ordered:
            values = view_of_bytes(source.read(name))
            assert len(values) == num_bytes_of(source.shapes[name], source.dtypes[name]), f"{name} is not as promised"
            file.write(values)
            progress(len(values))
            del values  # before the next one is made
    return file.sha256


def _header(source: TensorSource, names: Sequence[str]) -> bytes:
    """Length and JSON of the header, padded with spaces to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + num_bytes_of(source.shapes[name], source.dtypes[name])
        dtype = DTYPE_NAMES[source.dtypes[name]]
        entries[name] = {"dtype": dtype, "shape": list(source.shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
