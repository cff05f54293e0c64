"""config.json of published models, as far as the sizes go: what a conversion has to carry, without their weights."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from megatron_moe_grpo.models.upcycle import upcycled_config
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings

Config = dict[str, Any]
VOCAB_SIZE = 151936


def internvl(text: Config) -> Config:
    """InternVL3.5 with InternViT-300M and an output layer of its own."""
    vision = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True, "use_qk_norm": False,
        "norm_type": "layer_norm", "use_mean_pooling": True, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    }  # fmt: skip
    qwen3 = {
        "model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": VOCAB_SIZE,
        "rope_theta": 1000000, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "hidden_act": "silu",
    }  # fmt: skip
    return {
        "model_type": "internvl", "text_config": qwen3 | text, "vision_config": vision, "downsample_ratio": 0.5,
        "image_seq_length": 256, "image_token_id": 151671, "tie_word_embeddings": False,
    }  # fmt: skip


def internvl_3_5_1b() -> Config:
    """1.06 B parameters; the language model is Qwen3-0.6B's."""
    return internvl(
        {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16}
    )


def internvl_3_5_8b() -> Config:
    """8.5 B parameters; the language model is Qwen3-8B's."""
    return internvl(
        {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32}
    )


def internvl_3_5_1b_upcycled() -> Config:
    """2.9 B parameters: 8 experts a layer, 2 of them active."""
    return upcycled_config(internvl_3_5_1b(), UpcycleSettings())


def qwen2_vl_2b() -> Config:
    """2.2 B parameters, tied embeddings."""
    vision = {
        "model_type": "qwen2_vl", "depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4,
        "hidden_act": "quick_gelu", "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "spatial_patch_size": 14,
    }  # fmt: skip
    return {
        "model_type": "qwen2_vl", "vision_config": vision, "hidden_size": 1536, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": VOCAB_SIZE,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "hidden_act": "silu",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "use_sliding_window": False,
        "image_token_id": 151655, "video_token_id": 151656, "tie_word_embeddings": True,
    }  # fmt: skip


REAL_CONFIGS: Mapping[str, Callable[[], Config]] = MappingProxyType(
    {
        "internvl3.5-1b": internvl_3_5_1b,
        "internvl3.5-1b-upcycled": internvl_3_5_1b_upcycled,
        "internvl3.5-8b": internvl_3_5_8b,
        "qwen2-vl-2b": qwen2_vl_2b,
    }
)
