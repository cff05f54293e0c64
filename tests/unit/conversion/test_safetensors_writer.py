"""The safetensors library reads what is written, value for value; the digest is the file's."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from forked_work import memory_growth_bytes
from safetensors import safe_open
from safetensors.torch import load_file

from megatron_moe_grpo.conversion import Concat, Converter, MemorySource, Rule
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.conversion.safetensors_writer import write_safetensors
from megatron_moe_grpo.conversion.tensor_bytes import DTYPES


def random_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {
        str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)  # odd sizes: alignment matters
        for dtype in sorted(DTYPES.values(), key=lambda dtype: dtype.itemsize)
    }
    turned = torch.arange(6.0).reshape(2, 3).T
    return state | {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 7), "turned": turned, "ü": torch.ones(1)}


def test_write_safetensors_is_read_by_the_library(tmp_path: Path) -> None:
    state, path = random_state(), tmp_path / "model.safetensors"
    digest = write_safetensors(path, MemorySource(state), list(state))
    back = load_file(path)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name].float(), tensor.float())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_write_safetensors_aligns_every_tensor(tmp_path: Path) -> None:
    state, path = random_state(), tmp_path / "model.safetensors"
    write_safetensors(path, MemorySource(state), list(state))
    raw = path.read_bytes()
    header_bytes = int.from_bytes(raw[:8], "little")
    assert header_bytes % 8 == 0
    for name, tensor in state.items():
        start, _ = json.loads(raw[8 : 8 + header_bytes])[name]["data_offsets"]
        assert start % tensor.dtype.itemsize == 0


def test_write_safetensors_writes_the_named_tensors_in_their_order(tmp_path: Path) -> None:
    state = {name: torch.ones(1) for name in "dabc"}
    write_safetensors(tmp_path / "some", MemorySource(state), ["d", "b"])
    with safe_open(tmp_path / "some", framework="pt") as file:
        assert file.offset_keys() == ["d", "b"]


def test_write_safetensors_reports_every_byte(tmp_path: Path) -> None:
    written: list[int] = []
    state = random_state()
    write_safetensors(tmp_path / "some", MemorySource(state), list(state), written.append)
    assert sum(written) == sum(tensor.numel() * tensor.dtype.itemsize for tensor in state.values())


def test_write_safetensors_never_writes_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("mine")
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "some", MemorySource({}), [])


def test_write_safetensors_refuses_a_source_that_breaks_its_promise(tmp_path: Path) -> None:
    source = MemorySource({"a": torch.ones(2)})
    source.shapes["a"] = (3,)
    with pytest.raises(AssertionError, match="a is not as promised"):
        write_safetensors(tmp_path / "some", source, ["a"])


class MadeOnDemand:
    """`count` tensors of 10 MB, none of which exists before it is read."""

    def __init__(self, count: int):
        self.shapes: dict[str, Shape] = {f"{index}.{part}": (5_000_000,) for index in range(count) for part in "ab"}
        self.dtypes = dict.fromkeys(self.shapes, torch.bfloat16)

    def read(self, name: str) -> torch.Tensor:
        return torch.full(self.shapes[name], float(name[0]), dtype=torch.bfloat16)


def test_conversion_of_a_large_model_takes_little_memory(tmp_path: Path) -> None:
    rules = [Rule(Concat(), {"{n}.a": (5_000_000,), "{n}.b": (5_000_000,)}, "{n}", {"n": 20})]
    (tmp_path / "hf").mkdir()

    def convert() -> None:
        source = MadeOnDemand(20)
        write_safetensors(tmp_path / "hf" / "model.safetensors", source, list(source.shapes))
        there = Converter(rules).to_megatron(SafetensorsFolder(tmp_path / "hf"))
        back = Converter(rules).to_huggingface(there)
        write_safetensors(tmp_path / "back.safetensors", back, list(back.shapes))

    growth = memory_growth_bytes(convert)
    assert (tmp_path / "back.safetensors").stat().st_size > 400_000_000
    assert growth < 120 * 2**20, f"{growth:,} bytes"
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "hf" / "model.safetensors").read_bytes()
