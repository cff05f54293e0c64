"""Round trips of whole models that transformers wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.errors import ConversionError
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state
from megatron_moe_grpo.models.internvl.weight_map import weight_map


@pytest.fixture(params=["dense", "moe"])
def folder(request: pytest.FixtureRequest, dense_folder: Path, moe_folder: Path) -> Path:
    return dense_folder if request.param == "dense" else moe_folder


def test_weight_map_round_trip_is_bit_exact(folder: Path) -> None:
    state = read_hf_state(folder)
    converter = Converter(weight_map(read_hf_config(folder)))
    back = converter.to_huggingface(converter.to_megatron(state))
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
    megatron = Converter(weight_map(read_hf_config(dense_folder))).to_megatron(state)
    fc1 = megatron["language_model.decoder.layers.2.mlp.linear_fc1.weight"]
    assert torch.equal(fc1[:288], state["language_model.model.layers.2.mlp.gate_proj.weight"])
    assert torch.equal(fc1[288:], state["language_model.model.layers.2.mlp.up_proj.weight"])


def test_weight_map_has_no_output_layer_when_tied(dense_folder: Path) -> None:
    config = read_hf_config(dense_folder) | {"tie_word_embeddings": True}
    assert "language_model.output_layer.weight" not in Converter(weight_map(config)).megatron_shapes


@pytest.mark.parametrize("change", [{"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}])
def test_weight_map_refuses_a_mixture_of_routed_and_dense_layers(moe_folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((moe_folder / "config.json").read_text())
    config["text_config"] |= change
    with pytest.raises(ConversionError, match="Either every layer is routed or none"):
        weight_map(config)
