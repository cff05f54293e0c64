"""Tiny InternVL folders made by transformers, once a test run."""

from pathlib import Path

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen3MoeConfig

from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's dense model."""
    folder = tmp_path_factory.mktemp("internvl") / "dense"
    build_tiny_internvl(folder, TinySizes(), seed=0)
    return folder


@pytest.fixture(scope="session")
def moe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InternVL with Qwen3-MoE text, every optional vision weight switched the other way round than in the demo."""
    folder = tmp_path_factory.mktemp("internvl") / "moe"
    vision = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=(16, 16),
        patch_size=(4, 4), attention_bias=False, use_qk_norm=True, norm_type="rms_norm", use_mean_pooling=False,
    )  # fmt: skip
    text = Qwen3MoeConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True,
        max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=5, image_seq_length=4, tie_word_embeddings=False
    )
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    return folder
