"""The modelling file that travels with an exported Qwen2-VL with experts lets stock transformers load the folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_qwen2_vl_config import HUB_2B

from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.qwen2_vl import Qwen2VLArchitecture
from megatron_moe_grpo.models.qwen2_vl.modeling_qwen2_vl_moe import Qwen2VLMoeConfig, Qwen2VLMoeForConditionalGeneration
from megatron_moe_grpo.models.qwen2_vl.moe_config import MODELING_FILE, upcycled_config
from megatron_moe_grpo.models.qwen2_vl.weight_map import weight_map

EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": False,
    "mlp_only_layers": [1],
}  # fmt: skip
INPUTS = {
    "input_ids": torch.tensor([[9, 8, 3, 5, 5, 5, 5, 4, 20, 21, 22]]),
    "attention_mask": torch.ones(1, 11, dtype=torch.long),
    "image_grid_thw": torch.tensor([[1, 4, 4]]),
    "mm_token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]]),
}
# What a user with transformers alone does: load, answer, save, load what was saved.
STOCK_PROGRAM = """
import sys, torch
from transformers import AutoModelForImageTextToText
folder, inputs, saved = sys.argv[1:4]
inputs = torch.load(inputs, weights_only=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
assert "megatron_moe_grpo" not in sys.modules
with torch.no_grad():
    logits = model(**inputs).logits
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=3, min_new_tokens=3)
    model.save_pretrained(saved)
    again = AutoModelForImageTextToText.from_pretrained(saved, trust_remote_code=True).eval()
    assert torch.equal(again(**inputs).logits, logits)
torch.save({"logits": logits, "answer": answer, "class": type(model).__name__}, saved + ".pt")
"""


@pytest.fixture(scope="module")
def model(qwen_folder: Path) -> Qwen2VLMoeForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2VLMoeConfig(**upcycled_config(read_hf_config(qwen_folder), EXPERTS))
    return Qwen2VLMoeForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def exported(
    model: Qwen2VLMoeForConditionalGeneration, qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("qwen2_vl_moe")
    model.save_pretrained(folder / "saved")
    config = upcycled_config(read_hf_config(qwen_folder), EXPERTS)
    state = read_hf_state(folder / "saved")
    write_hf_folder(folder / "exported", state, config, assets=qwen_folder, modeling_file=MODELING_FILE)
    return folder / "exported"


def inputs() -> dict[str, Any]:
    return INPUTS | {"pixel_values": torch.randn(16, 384, generator=torch.Generator().manual_seed(0))}


def test_stock_transformers_loads_answers_and_saves(
    model: Qwen2VLMoeForConditionalGeneration, exported: Path, tmp_path: Path
) -> None:
    torch.save(inputs(), tmp_path / "inputs.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    # Alone in its folder and without our package on the path.
    environment.pop("PYTHONPATH", None)
    arguments = [str(exported), str(tmp_path / "inputs.pt"), str(tmp_path / "again")]
    program = [sys.executable, "-c", STOCK_PROGRAM, *arguments]
    run = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    got = torch.load(tmp_path / "again.pt", weights_only=True)
    assert got["class"] == "Qwen2VLMoeForConditionalGeneration"
    with torch.no_grad():
        assert torch.equal(got["logits"], model(**inputs()).logits)
    assert got["answer"].shape == (1, 14)


def test_the_weight_map_names_what_transformers_saves(exported: Path) -> None:
    state = read_hf_state(exported)
    expected = Converter(weight_map(read_hf_config(exported))).huggingface_shapes
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected
    assert expected["model.layers.0.mlp.experts.3.gate_proj.weight"] == (24, 96)
    assert expected["model.layers.0.mlp.gate.weight"] == (4, 96)
    assert expected["model.layers.1.mlp.gate_proj.weight"] == (288, 96)


def test_routers_and_experts_reach_the_logits(model: Qwen2VLMoeForConditionalGeneration) -> None:
    with torch.no_grad():
        before = model(**inputs()).logits
        gate = model.model.language_model.layers[3].mlp.gate.weight
        gate.neg_()
        after = model(**inputs()).logits
        gate.neg_()
    assert (before - after).abs().max() > 1e-2


def test_new_experts_are_drawn_like_the_rest(model: Qwen2VLMoeForConditionalGeneration) -> None:
    experts = model.model.language_model.layers[2].mlp
    for weight in (experts.gate.weight, experts.experts.gate_up_proj, experts.experts.down_proj):
        assert 0.09 < weight.std() < 0.11  # initializer_range 0.1


def test_an_exported_folder_carries_our_file_and_names_it(exported: Path) -> None:
    assert (exported / MODELING_FILE.name).read_bytes() == MODELING_FILE.read_bytes()
    config = read_hf_config(exported)
    assert config["auto_map"]["AutoModelForImageTextToText"] == (
        "modeling_qwen2_vl_moe.Qwen2VLMoeForConditionalGeneration"
    )
    assert "megatron_moe_grpo" not in MODELING_FILE.read_text().split('"""', 2)[2], "it must stand alone"


def test_upcycled_config_of_the_flat_spelling_is_nested() -> None:
    dense = Qwen2VLArchitecture.from_huggingface(HUB_2B)
    config = upcycled_config(HUB_2B, EXPERTS)
    moe = Qwen2VLArchitecture.from_huggingface(config)
    assert (moe.text.num_experts, moe.text.num_active, moe.text.expert_ffn_size) == (4, 2, 24)
    assert moe.text.dense_layers == (1,) and moe.vision == dense.vision
    assert (moe.text.mrope_section, moe.text.rope_theta, moe.text.ties_embeddings) == ((16, 24, 24), 1e6, True)
    stock = Qwen2VLMoeConfig(**config)
    assert stock.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert (stock.text_config.hidden_size, stock.text_config.eos_token_id, stock.tie_word_embeddings) == (
        1536, 151645, True,
    )  # fmt: skip
    assert HUB_2B["model_type"] == "qwen2_vl" and "text_config" not in HUB_2B
