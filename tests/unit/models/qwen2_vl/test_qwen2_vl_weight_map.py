"""Round trips of whole models that transformers wrote."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_qwen2_vl_config import HUB_2B, HUB_7B
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from megatron_moe_grpo.conversion import Converter, MemorySource
from megatron_moe_grpo.conversion.tensor_source import read_all
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes, build_tiny_qwen2_vl
from megatron_moe_grpo.models.qwen2_vl.weight_map import weight_map


@pytest.mark.parametrize("ties_embeddings", [False, True], ids=["untied", "tied"])
def test_qwen2_vl_round_trip_is_bit_exact(tmp_path: Path, ties_embeddings: bool) -> None:
    build_tiny_qwen2_vl(tmp_path / "tiny", TinySizes(), seed=0, ties_embeddings=ties_embeddings)
    state = read_hf_state(tmp_path / "tiny")
    assert ("lm_head.weight" in state) != ties_embeddings
    converter = Converter(weight_map(read_hf_config(tmp_path / "tiny")))
    megatron = converter.to_megatron(MemorySource(state))
    back = read_all(converter.to_huggingface(MemorySource(read_all(megatron))))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("config", "num_parameters"), [(HUB_2B, 2_208_985_600), (HUB_7B, 8_291_375_616)])
def test_weight_map_of_the_hub_models_is_complete(config: dict[str, Any], num_parameters: int) -> None:
    """Every weight of transformers' own model, under its name on disk."""
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**copy.deepcopy(config)))
    expected = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    got = Converter(weight_map(config)).huggingface_shapes
    assert got == expected
    assert sum(map(math.prod, got.values())) == num_parameters


def test_qwen2_vl_uses_megatron_names(qwen_folder: Path) -> None:
    state = read_hf_state(qwen_folder)
    megatron = Converter(weight_map(read_hf_config(qwen_folder))).to_megatron(MemorySource(state))
    shapes = megatron.shapes
    layer = "language_model.decoder.layers.1."
    assert shapes[layer + "self_attention.linear_qkv.weight"] == ((4 + 2 + 2) * 24, 96)
    assert shapes[layer + "self_attention.linear_qkv.bias"] == ((4 + 2 + 2) * 24,)
    assert shapes["vision_tower.blocks.1.attn.qkv.weight"] == (3 * 64, 64)
    assert shapes["projector.mlp.2.weight"] == (96, 256)
    # First the query heads of group 0, then its key and its value.
    fused = megatron.read(layer + "self_attention.linear_qkv.bias")
    assert torch.equal(fused[:48], state["model.layers.1.self_attn.q_proj.bias"][:48])
    assert torch.equal(fused[48:72], state["model.layers.1.self_attn.k_proj.bias"][:24])


def test_qwen2_vl_refuses_the_names_of_memory(qwen_folder: Path) -> None:
    """`model.language_model.*` and `model.visual.*` are transformers' names in memory, never on disk."""
    in_memory = {
        ("model." + key if key.startswith("visual.") else key.replace("model.", "model.language_model.", 1)): tensor
        for key, tensor in read_hf_state(qwen_folder).items()
    }
    with pytest.raises(ConversionError, match="model.visual.patch_embed.proj.weight"):
        Converter(weight_map(read_hf_config(qwen_folder))).to_megatron(MemorySource(in_memory))


def test_qwen2_vl_weight_map_refuses_what_the_config_refuses(qwen_folder: Path) -> None:
    config = json.loads((qwen_folder / "config.json").read_text())
    config["vision_config"]["in_channels"] = 1
    with pytest.raises(ConversionError, match="in_channels: 1"):
        weight_map(config)
