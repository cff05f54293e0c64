"""What is read from config.json, and what is refused."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.qwen2_vl import Qwen2VLArchitecture
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycled_config

# config.json of Qwen2-VL-2B-Instruct on the hub, as transformers 4.41 wrote it.
HUB_2B: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 1536,
    "initializer_range": 0.02, "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2_vl", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip

HUB_7B = HUB_2B | {
    "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "tie_word_embeddings": False, "vocab_size": 152064,
    "vision_config": HUB_2B["vision_config"] | {"hidden_size": 3584},
}  # fmt: skip


def test_from_huggingface_reads_the_flat_config_of_the_hub() -> None:
    architecture = Qwen2VLArchitecture.from_huggingface(HUB_2B)
    text, vision = architecture.text, architecture.vision
    assert (text.hidden_size, text.num_layers, text.num_heads, text.num_kv_heads) == (1536, 28, 12, 2)
    assert (text.head_dim, text.ffn_size, text.vocab_size, text.rope_theta) == (128, 8960, 151936, 1e6)
    assert (text.mrope_section, text.ties_embeddings, text.norm_epsilon) == ((16, 24, 24), True, 1e-6)
    assert (text.has_qkv_bias, text.has_qk_norm, text.num_experts) == (True, False, None)
    assert (vision.hidden_size, vision.num_layers, vision.num_heads, vision.ffn_size) == (1280, 32, 16, 5120)
    assert (vision.patch_size, vision.temporal_patch_size, vision.merge_size) == (14, 2, 2)
    assert (architecture.image_token_id, architecture.video_token_id) == (151655, 151656)
    assert architecture.projector_input_size == 5120


def test_from_huggingface_reads_the_nested_config(qwen_folder: Path) -> None:
    architecture = Qwen2VLArchitecture.from_huggingface(read_hf_config(qwen_folder))
    text = architecture.text
    assert (text.hidden_size, text.head_dim, text.mrope_section, text.ties_embeddings) == (96, 24, (4, 4, 4), False)
    assert (architecture.vision.hidden_size, architecture.vision.patch_size) == (64, 8)


@pytest.mark.parametrize(("outside", "inside"), [(True, None), (False, True), (True, True), (False, False)])
def test_from_huggingface_ties_embeddings_if_either_section_says_so(
    qwen_folder: Path, outside: bool, inside: bool | None
) -> None:
    config = read_hf_config(qwen_folder)
    config["tie_word_embeddings"] = outside
    if inside is not None:
        config["text_config"]["tie_word_embeddings"] = inside
    expected = outside or bool(inside)
    assert Qwen2VLArchitecture.from_huggingface(config).text.ties_embeddings == expected


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"model_type": "qwen2_5_vl"}, "qwen2_vl or qwen2_vl_moe"),
        (None, {"image_token_id": "5"}, "image_token_id: '5'"),
        (None, {"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "yarn"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 16]}}, "add up to 64"),
        (None, {"rope_scaling": None}, "mrope_section: None"),
        (None, {"use_sliding_window": True}, "use_sliding_window"),
        (None, {"num_attention_heads": 11}, "does not divide into the heads"),
        (None, {"tie_word_embeddings": 1}, "tie_word_embeddings: 1"),
        ("vision_config", {"hidden_size": 3584}, "does not lead into the language model"),
        ("vision_config", {"in_chans": 1}, "in_chans: 1"),
        ("vision_config", {"spatial_patch_size": 16}, "spatial_patch_size: 16"),
        ("vision_config", {"hidden_act": "gelu"}, "quick_gelu"),
        ("vision_config", {"num_heads": 640}, "pairs for height"),
        ("vision_config", {"depth": None}, "depth: None"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": 8}}, "mrope_section: 8"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": "abc"}}, "mrope_section: abc"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": [-8, 24, 48]}}, "mrope_section: .-8, 24, 48"),
        (None, {"rope_scaling": "mrope"}, "rope_scaling: 'mrope'"),
        (None, {"rope_parameters": ["a"]}, "rope_parameters: .'a'"),
        (None, {"num_attention_heads": 0}, "num_attention_heads: 0"),
        (None, {"vision_config": [1]}, "vision_config: .1"),
        ("vision_config", {"num_heads": 0}, "num_heads: 0"),
        ("vision_config", {"spatial_merge_size": 0}, "spatial_merge_size: 0"),
        ("vision_config", {"temporal_patch_size": -2}, "temporal_patch_size: -2"),
        ("vision_config", {"mlp_ratio": 0}, "mlp_ratio: 0"),
        ("vision_config", {"mlp_ratio": 1e308}, r"mlp_ratio: 1e\+308"),
    ],
)
def test_from_huggingface_refuses_qwen2_vl(section: str | None, change: dict[str, Any], message: str) -> None:
    config = copy.deepcopy(HUB_2B)
    (config[section] if section else config).update(change)
    with pytest.raises(ConfigError, match=message):
        Qwen2VLArchitecture.from_huggingface(config)


def test_from_huggingface_refuses_a_step_that_the_class_with_experts_does_not_know(qwen_folder: Path) -> None:
    """Qwen2VLMoeForConditionalGeneration goes by `mlp_only_layers` alone."""
    config = upcycled_config(read_hf_config(qwen_folder), UpcycleSettings())
    Qwen2VLArchitecture.from_huggingface(config)
    config["text_config"]["decoder_sparse_step"] = 2
    with pytest.raises(ConfigError, match="decoder_sparse_step: 2"):
        Qwen2VLArchitecture.from_huggingface(config)


def test_from_huggingface_refuses_another_text_model(qwen_folder: Path) -> None:
    config = read_hf_config(qwen_folder)
    config["text_config"]["model_type"] = "qwen3"
    with pytest.raises(ConfigError, match="model_type: qwen2_vl_text"):
        Qwen2VLArchitecture.from_huggingface(config)


def test_qwen2_vl_config_imports_without_torch() -> None:
    code = "import sys, megatron_moe_grpo.models.qwen2_vl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
