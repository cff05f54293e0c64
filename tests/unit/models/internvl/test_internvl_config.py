"""What is read from config.json, and what is refused."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.internvl import InternVLArchitecture


def test_from_huggingface_reads_the_dense_sizes(dense_folder: Path) -> None:
    architecture = InternVLArchitecture.from_huggingface(read_hf_config(dense_folder))
    text, vision = architecture.text, architecture.vision
    assert (text.hidden_size, text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (96, 4, 4, 2, 24)
    assert (text.ffn_size, text.rope_theta, text.norm_epsilon, text.ties_embeddings) == (288, 10000.0, 1e-6, False)
    assert (text.num_experts, text.num_active, text.expert_ffn_size) == (None, None, None)
    assert (text.has_qk_norm, text.has_qkv_bias, text.renormalises_weights) == (True, False, False)
    assert (vision.hidden_size, vision.num_patches, vision.attention_bias) == (64, 16, True)
    assert (architecture.image_seq_length, architecture.image_token_id) == (4, 5)
    assert architecture.projector_input_size == 256


@pytest.mark.parametrize("experts_key", ["num_experts", "num_local_experts"])
def test_from_huggingface_reads_experts_under_either_name(moe_folder: Path, experts_key: str) -> None:
    config = read_hf_config(moe_folder)
    config["text_config"][experts_key] = config["text_config"].pop("num_local_experts")
    text = InternVLArchitecture.from_huggingface(config).text
    assert (text.num_experts, text.num_active, text.expert_ffn_size, text.renormalises_weights) == (5, 2, 20, True)


def test_from_huggingface_reads_the_older_rope_keys(dense_folder: Path) -> None:
    config = read_hf_config(dense_folder)
    del config["text_config"]["rope_parameters"]
    config["text_config"] |= {"rope_theta": 1000000, "rope_scaling": None}
    assert InternVLArchitecture.from_huggingface(config).text.rope_theta == 1e6


def test_from_huggingface_reads_qwen2_with_internvl3s_rope(dense_folder: Path) -> None:
    """Dynamic scaling is no scaling up to max_position_embeddings; released files say nothing of tied embeddings."""
    config = read_hf_config(dense_folder)
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    config["text_config"] |= {"model_type": "qwen2", "head_dim": None, "rope_theta": 1e6, "rope_parameters": None}
    config["text_config"]["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
    text = InternVLArchitecture.from_huggingface(config).text
    assert (text.has_qk_norm, text.has_qkv_bias, text.ties_embeddings) == (False, True, False)
    assert (text.head_dim, text.rope_theta, text.max_positions) == (96 // 4, 1e6, 512)


@pytest.mark.parametrize("is_tied", [True, False])
def test_from_huggingface_takes_the_outer_word_on_tied_embeddings(dense_folder: Path, is_tied: bool) -> None:
    config = read_hf_config(dense_folder) | {"tie_word_embeddings": is_tied}
    config["text_config"]["tie_word_embeddings"] = not is_tied
    assert InternVLArchitecture.from_huggingface(config).text.ties_embeddings == is_tied


def test_from_huggingface_reads_other_pixel_shuffles(dense_folder: Path) -> None:
    config = read_hf_config(dense_folder) | {"downsample_ratio": 0.25, "image_seq_length": 1}
    architecture = InternVLArchitecture.from_huggingface(config)
    assert (architecture.shuffle_factor, architecture.projector_input_size) == (4, 64 * 16)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"model_type": "internvl_hub"}, "internvl"),
        (None, {"vision_feature_layer": -2}, "vision_feature_layer"),
        (None, {"image_seq_length": 16}, "image_seq_length"),
        (None, {"downsample_ratio": 0.4}, "whole patches"),
        (None, {"image_token_id": True}, "image_token_id"),
        ("text_config", {"model_type": "llama"}, "qwen2 or qwen2_moe or qwen3 or qwen3_moe"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"use_sliding_window": True}, "use_sliding_window"),
        ("text_config", {"hidden_size": "96"}, "hidden_size: '96'"),
        ("text_config", {"head_dim": None}, "head_dim"),
        ("text_config", {"num_attention_heads": 5}, "key-value groups"),
        ("vision_config", {"image_size": [32, 64]}, "square"),
        ("vision_config", {"norm_type": "batch_norm"}, "norm_type"),
        (None, {"image_seq_length": 0}, "image_seq_length: 0"),
        (None, {"downsample_ratio": float("inf")}, "downsample_ratio: inf"),
        (None, {"downsample_ratio": 10**400}, "downsample_ratio: 1000"),
        ("text_config", {"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ("text_config", {"vocab_size": -1}, "vocab_size: -1"),
        ("text_config", {"num_key_value_heads": 0}, "num_key_value_heads: 0"),
        ("text_config", {"num_attention_heads": True}, "num_attention_heads: True"),
        ("text_config", {"rope_parameters": ["a"]}, "rope_parameters: .'a'"),
        ("text_config", {"rope_parameters": None, "rope_scaling": "x"}, "rope_scaling: 'x'"),
        ("text_config", {"model_type": ["a"]}, "model_type: .'a'"),
        ("vision_config", {"num_attention_heads": 0}, "num_attention_heads: 0"),
        ("vision_config", {"patch_size": [0, 0]}, "patch_size: 0"),
        ("vision_config", {"patch_size": [True, True]}, "patch_size: True"),
        ("vision_config", {"image_size": [[32], [32]]}, "image_size: .32"),
    ],
)
def test_from_huggingface_refuses(
    dense_folder: Path, section: str | None, change: dict[str, Any], message: str
) -> None:
    config = copy.deepcopy(read_hf_config(dense_folder))
    (config[section] if section else config).update(change)
    with pytest.raises(ConfigError, match=message):
        InternVLArchitecture.from_huggingface(config)


def test_from_huggingface_refuses_more_active_experts_than_there_are(moe_folder: Path) -> None:
    config = read_hf_config(moe_folder)
    config["text_config"]["num_experts_per_tok"] = 6
    with pytest.raises(ConfigError, match="K = 6, N = 5"):
        InternVLArchitecture.from_huggingface(config)


@pytest.mark.parametrize("layers", [5, "0", [["a"]], [0.0], [True], [2], [-1], [0, 1]])
def test_from_huggingface_refuses_layers_without_experts(moe_folder: Path, layers: object) -> None:
    config = read_hf_config(moe_folder)
    config["text_config"]["mlp_only_layers"] = layers
    with pytest.raises(ConfigError, match="(?s)layer.*got"):
        InternVLArchitecture.from_huggingface(config)


@pytest.mark.parametrize("step", [0, -1, "2", None, True])
def test_from_huggingface_refuses_a_step_that_is_no_count(moe_folder: Path, step: object) -> None:
    config = read_hf_config(moe_folder)
    config["text_config"]["decoder_sparse_step"] = step
    with pytest.raises(ConfigError, match=f"decoder_sparse_step: {step!r}"):
        InternVLArchitecture.from_huggingface(config)


def test_config_imports_without_torch() -> None:
    code = "import sys, megatron_moe_grpo.models.internvl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
