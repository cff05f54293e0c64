"""Round trips of whole models that transformers wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from original_internvl import OriginalSizes, write_original_internvl
from transformers import InternVLConfig, InternVLForConditionalGeneration

from megatron_moe_grpo.conversion import Converter, MemorySource, read_all
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state
from megatron_moe_grpo.models.internvl.chat_config import native_config
from megatron_moe_grpo.models.internvl.weight_map import weight_map


@pytest.fixture(params=["dense", "moe"])
def folder(request: pytest.FixtureRequest, dense_folder: Path, moe_folder: Path) -> Path:
    return dense_folder if request.param == "dense" else moe_folder


def test_weight_map_round_trip_is_bit_exact(folder: Path) -> None:
    state = read_hf_state(folder)
    converter = Converter(weight_map(read_hf_config(folder)))
    back = read_all(converter.to_huggingface(converter.to_megatron(MemorySource(state))))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_weight_map_uses_megatron_names(dense_folder: Path, moe_folder: Path) -> None:
    dense = Converter(weight_map(read_hf_config(dense_folder))).megatron_shapes
    moe = Converter(weight_map(read_hf_config(moe_folder))).megatron_shapes
    layer = "language_model.decoder.layers.1."
    assert dense[layer + "self_attention.linear_qkv.weight"] == ((4 + 2 + 2) * 24, 96)
    assert dense[layer + "mlp.linear_fc1.weight"] == (2 * 288, 96)
    assert dense[layer + "mlp.linear_fc2.weight"] == (96, 288)
    assert moe[layer + "mlp.router.weight"] == (5, 24)
    assert moe[layer + "mlp.experts.local_experts.4.linear_fc1.weight"] == (2 * 20, 24)
    assert {"language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight"} <= dense.keys()
    assert {"language_model.decoder.final_layernorm.weight", "projector.linear_1.bias"} <= dense.keys()


def test_weight_map_concatenates_gate_before_up(dense_folder: Path) -> None:
    state = read_hf_state(dense_folder)
    megatron = Converter(weight_map(read_hf_config(dense_folder))).to_megatron(MemorySource(state))
    fc1 = megatron.read("language_model.decoder.layers.2.mlp.linear_fc1.weight")
    assert torch.equal(fc1[:288], state["language_model.model.layers.2.mlp.gate_proj.weight"])
    assert torch.equal(fc1[288:], state["language_model.model.layers.2.mlp.up_proj.weight"])


def test_weight_map_has_no_output_layer_when_tied(dense_folder: Path) -> None:
    config = read_hf_config(dense_folder) | {"tie_word_embeddings": True}
    assert "language_model.output_layer.weight" not in Converter(weight_map(config)).megatron_shapes


@pytest.mark.parametrize(
    ("change", "dense_layers"),
    [({"mlp_only_layers": [0]}, [0]), ({"decoder_sparse_step": 2}, [0]), ({"mlp_only_layers": [1]}, [1])],
)
def test_weight_map_keeps_dense_layers_between_routed_ones(
    moe_folder: Path, tmp_path: Path, change: dict[str, Any], dense_layers: list[int]
) -> None:
    config = json.loads((moe_folder / "config.json").read_text())
    config["text_config"] |= change
    InternVLForConditionalGeneration(InternVLConfig(**config)).save_pretrained(tmp_path)
    converter = Converter(weight_map(config))
    assert converter.huggingface_shapes == SafetensorsFolder(tmp_path).shapes
    routed = [int(key.split(".")[3]) for key in converter.megatron_shapes if key.endswith("mlp.router.weight")]
    assert sorted({0, 1} - set(routed)) == dense_layers


@pytest.mark.parametrize(
    "sizes",
    [
        OriginalSizes("qwen2"),
        OriginalSizes("qwen3", has_qk_norm=True, has_qkv_bias=False, norm_type="rms_norm"),
        OriginalSizes("qwen3_moe"),
    ],
    ids=["qwen2", "qwen3_other_vision", "qwen3_moe"],
)
def test_weight_map_of_the_original_layout_round_trips(sizes: OriginalSizes, tmp_path: Path) -> None:
    write_original_internvl(tmp_path / "original", sizes)
    config, state = read_hf_config(tmp_path / "original"), read_hf_state(tmp_path / "original")
    converter = Converter(weight_map(config))
    megatron = converter.to_megatron(MemorySource(state))
    back = read_all(converter.to_huggingface(megatron))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    native = Converter(weight_map(native_config(config, {"<IMG_CONTEXT>": 5, "<|im_end|>": 1})))
    assert native.megatron_shapes == converter.megatron_shapes
    qkv = state["vision_model.encoder.layers.1.attn.qkv.weight"]
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = megatron.read(f"vision_tower.encoder.layer.1.attention.{name}.weight")
        assert torch.equal(part, qkv[16 * number : 16 * (number + 1)])


def test_weight_map_of_the_original_layout_names_what_is_missing(tmp_path: Path) -> None:
    write_original_internvl(tmp_path / "original")
    state = read_hf_state(tmp_path / "original")
    del state["vision_model.encoder.layers.0.attn.qkv.bias"]
    state["mlp1.2.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"(?s)missing: vision_model\S+qkv\.bias.*unread: mlp1\.2\.weight"):
        Converter(weight_map(read_hf_config(tmp_path / "original"))).to_megatron(MemorySource(state))
