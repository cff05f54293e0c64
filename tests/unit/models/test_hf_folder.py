"""Whole folders in and out; damage is named."""

import json
from pathlib import Path

import pytest
import torch

from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder


def test_write_hf_folder_gives_back_what_was_read(dense_folder: Path, tmp_path: Path) -> None:
    state, config = read_hf_state(dense_folder), read_hf_config(dense_folder)
    write_hf_folder(tmp_path / "out", state, config, assets=dense_folder, max_shard_size="500KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    back = read_hf_state(tmp_path / "out")
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert read_hf_config(tmp_path / "out") == config
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (dense_folder / "tokenizer.json").read_bytes()


def test_write_hf_folder_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        write_hf_folder(tmp_path / "out", {}, {}, assets=tmp_path)


def test_write_hf_folder_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_hf_folder(tmp_path / "out", {"a": torch.zeros(1)}, {"bad": object()}, assets=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_read_hf_state_names_a_missing_shard(dense_folder: Path, tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "out", read_hf_state(dense_folder), {}, assets=dense_folder, max_shard_size="500KB")
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ConversionError, match=shard.name):
        read_hf_state(tmp_path / "out")


def test_read_hf_state_names_a_damaged_file(dense_folder: Path, tmp_path: Path) -> None:
    whole = (dense_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConversionError, match=r"damaged(?s:.)*model\.safetensors"):
        read_hf_state(tmp_path)


def test_read_hf_state_refuses_pickles_and_paths_out_of_the_folder(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="safetensors"):
        read_hf_state(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ConversionError, match="outside the folder"):
        read_hf_state(tmp_path)
