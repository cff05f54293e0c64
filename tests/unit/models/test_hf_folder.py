"""Whole folders in and out; stock libraries read them; damage is named; a kill leaves nothing that looks whole."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_work import exit_code_of
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForImageTextToText

from megatron_moe_grpo.conversion import MemorySource, read_all
from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.errors import CheckpointError, ConversionError
from megatron_moe_grpo.models.hf_folder import (
    config_in_dtype,
    read_hf_config,
    read_hf_state,
    write_hf_folder,
    write_safetensors_folder,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def written(dense_folder: Path, tmp_path: Path) -> Path:
    """The demo's model again, in shards."""
    source = SafetensorsFolder(dense_folder)
    write_safetensors_folder(tmp_path / "out", source, read_hf_config(dense_folder), dense_folder, 500_000)
    return tmp_path / "out"


def test_write_safetensors_folder_gives_back_what_was_read(dense_folder: Path, written: Path) -> None:
    state, back = read_hf_state(dense_folder), read_hf_state(written)
    assert len(list(written.glob("*.safetensors"))) > 1
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    files = {path.name for path in dense_folder.iterdir() if path.suffix != ".safetensors"}
    assert files == {path.name for path in written.iterdir() if path.suffix != ".safetensors"} - {
        INDEX,
        "manifest.json",
    }
    assert all((written / name).read_bytes() == (dense_folder / name).read_bytes() for name in files)
    verify_manifest(written)


def test_write_safetensors_folder_writes_what_huggingface_hub_writes(dense_folder: Path, tmp_path: Path) -> None:
    # The order of the keys decides what goes into which shard.
    state = dict(sorted(read_hf_state(dense_folder).items()))
    write_hf_folder(tmp_path / "ours", state, {}, dense_folder, max_shard_bytes=500_000)
    (tmp_path / "theirs").mkdir()
    save_torch_state_dict(state, tmp_path / "theirs", max_shard_size=500_000)
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert len(theirs) > 2
    assert {name: (tmp_path / "ours" / name).read_bytes() for name in theirs} == theirs


def test_write_safetensors_folder_keeps_the_bytes_of_an_unchanged_config(tmp_path: Path) -> None:
    # Order, spaces and number formats as nobody else would write them.
    text = '{ "model_type" :"internvl",\n "b": 1.0e-6, "a": "\\u00fc" }'
    (tmp_path / "config.json").write_text(text)
    write_hf_folder(tmp_path / "out", {"a": torch.ones(1)}, read_hf_config(tmp_path), assets=tmp_path)
    assert (tmp_path / "out" / "config.json").read_text() == text


@pytest.mark.parametrize("max_shard_bytes", [500_000, 10**9])
def test_write_safetensors_folder_is_loaded_by_stock_transformers(
    dense_folder: Path, tmp_path: Path, max_shard_bytes: int
) -> None:
    source = SafetensorsFolder(dense_folder)
    write_safetensors_folder(tmp_path / "out", source, read_hf_config(dense_folder), dense_folder, max_shard_bytes)
    expected = AutoModelForImageTextToText.from_pretrained(dense_folder).state_dict()
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_write_safetensors_folder_writes_a_changed_config(dense_folder: Path, tmp_path: Path) -> None:
    config = read_hf_config(dense_folder) | {"image_seq_length": 7}
    write_hf_folder(tmp_path / "out", {"a": torch.ones(1)}, config, dense_folder)
    assert read_hf_config(tmp_path / "out") == config


def test_write_safetensors_folder_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        write_hf_folder(tmp_path / "out", {}, {}, assets=tmp_path)


def test_write_safetensors_folder_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_hf_folder(tmp_path / "out", {"a": torch.zeros(1)}, {"bad": object()}, assets=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_safetensors_folder_asks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable(MemorySource):
        def read(self, name: str) -> torch.Tensor:
            raise AssertionError("read before the disk was asked")

    free = shutil.disk_usage(tmp_path)._replace(free=40_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    source = Unreadable({"a": torch.zeros(10_000_000)})
    with pytest.raises(ConversionError, match=r"not enough room(?s:.*)40,000,000 bytes(?s:.*)73,554,432 bytes"):
        write_safetensors_folder(tmp_path / "out", source, {}, assets=tmp_path)
    assert list(tmp_path.iterdir()) == []


class KilledWithin(MemorySource):
    """Ends its process, without a word, when a tensor of the name is read."""

    fatal_name = ""

    def read(self, name: str) -> torch.Tensor:
        if name == self.fatal_name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name)


def kill_at_tensor(name: str) -> Callable[[MemorySource, pytest.MonkeyPatch], None]:
    return lambda source, patch: patch.setattr(source, "fatal_name", name)


def kill_at_call(name: str) -> Callable[[MemorySource, pytest.MonkeyPatch], None]:
    return lambda source, patch: patch.setattr(os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize(
    "arm",
    [kill_at_tensor("0"), kill_at_tensor("5"), kill_at_tensor("9"), kill_at_call("fsync"), kill_at_call("rename")],
)
def test_a_killed_conversion_leaves_no_folder_that_looks_complete(
    tmp_path: Path, arm: Callable[[MemorySource, pytest.MonkeyPatch], None]
) -> None:
    source = KilledWithin({str(number): torch.full((100,), float(number)) for number in range(10)})
    (tmp_path / "assets").mkdir()

    def convert() -> None:
        write_safetensors_folder(tmp_path / "out", source, {"a": 1}, tmp_path / "assets", max_shard_bytes=1600)

    with pytest.MonkeyPatch.context() as patch:
        arm(source, patch)
        assert exit_code_of(convert) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "assets"]
    convert()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assets", "out"]
    verify_manifest(tmp_path / "out")
    assert read_all(SafetensorsFolder(tmp_path / "out")).keys() == source.shapes.keys()


def flip_a_bit(shard: Path) -> None:
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 64
    shard.write_bytes(damaged)


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda shard: os.truncate(shard, 1000)])
def test_the_manifest_names_the_shard_that_is_damaged(written: Path, damage: Callable[[Path], object]) -> None:
    shard = sorted(written.glob("*.safetensors"))[1]
    damage(shard)
    with pytest.raises(CheckpointError, match=shard.name):
        verify_manifest(written)


def test_read_hf_state_names_a_missing_shard(written: Path) -> None:
    shard = sorted(written.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ConversionError, match=shard.name):
        read_hf_state(written)


def write_config(folder: Path, **values: object) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantised(?s:.*)quantization_config awq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"text_config\.quantization_config fp8"),
    ],
)
def test_read_hf_config_refuses(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read_hf_config(write_config(tmp_path, **values))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[1]", "not a JSON object"),
        ("config.json", b"{", r"cannot be read"),
        ("config.json", b"\xff", r"cannot be read"),
        ("config.json", b"[" * 100_000, r"cannot be read"),
        ("model.safetensors", b"", r"config\.json cannot be read"),
        ("adapter_config.json", b"{}", r"adapter"),
        ("model.gguf", b"", r"GGUF"),
        ("pytorch_model.bin", b"", r"pickle"),
    ],
)
def test_read_hf_config_says_what_the_folder_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_hf_config(tmp_path)


def test_config_in_dtype_changes_every_dtype_and_nothing_else() -> None:
    text = {"torch_dtype": "bfloat16", "hidden_size": 8}
    config = {"dtype": "bfloat16", "text_config": text, "vision_config": {"dtype": None}}
    changed = {"dtype": "float32", "text_config": text | {"torch_dtype": "float32"}, "vision_config": {"dtype": None}}
    assert config_in_dtype(config, "float32") == changed
    assert config["dtype"] == text["torch_dtype"] == "bfloat16"
