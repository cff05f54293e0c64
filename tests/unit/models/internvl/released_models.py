"""The configs of released models, both layouts, down to the keys that matter and the oddities that could.

Sizes are those of the language models they are built on; InternVL3's dynamic rotary scaling, missing
`tie_word_embeddings` and wrong end of turn are as in its folders.
"""

from dataclasses import dataclass
from typing import Any

VIT_300M = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@dataclass(frozen=True)
class Released:
    """One model; counts are all parameters, vision tower and projector included."""

    name: str
    text: dict[str, Any]
    parameters: str
    """Billions, as its model card or its language model's says."""


def qwen2(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    """InternVL3: Qwen2.5."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": ffn, "vocab_size": 151674, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "hidden_act": "silu", "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "layer_types": ["full_attention"] * layers, "max_window_layers": 70, "sliding_window": None,
        "use_sliding_window": False, "torch_dtype": "bfloat16", "use_cache": False,
    }  # fmt: skip


def qwen3(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    """InternVL3.5: Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128,
        "intermediate_size": ffn, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "max_window_layers": layers,
        "sliding_window": None, "use_sliding_window": False, "torch_dtype": "bfloat16", "use_cache": False,
    }  # fmt: skip


def qwen3_30b_a3b() -> dict[str, Any]:
    """InternVL3.5-30B-A3B."""
    return qwen3(2048, 48, 32, 4, 6144) | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "router_aux_loss_coef": 0.001, "output_router_logits": False,
    }  # fmt: skip


RELEASED = (
    Released("InternVL3-1B", qwen2(896, 24, 14, 2, 4864), "0.94"),
    Released("InternVL3-2B", qwen2(1536, 28, 12, 2, 8960), "2.09"),
    Released("InternVL3-8B", qwen2(3584, 28, 28, 4, 18944), "7.94"),
    Released("InternVL3_5-1B", qwen3(1024, 28, 16, 8, 3072), "1.06"),
    Released("InternVL3_5-2B", qwen3(2048, 28, 16, 8, 6144), "2.35"),
    Released("InternVL3_5-4B", qwen3(2560, 36, 32, 8, 9728), "4.73"),
    Released("InternVL3_5-8B", qwen3(4096, 36, 32, 8, 12288), "8.53"),
    Released("InternVL3_5-30B-A3B", qwen3_30b_a3b(), "30.85"),
)


def original_config(model: Released) -> dict[str, Any]:
    """`config.json` of the original layout."""
    vision = VIT_300M | {
        "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "image_size": 448, "patch_size": 14,
        "attention_dropout": 0.0, "drop_path_rate": 0.1, "dropout": 0.0, "hidden_act": "gelu",
        "initializer_factor": 0.1, "initializer_range": 1e-10, "layer_norm_eps": 1e-6, "norm_type": "layer_norm",
        "num_channels": 3, "num_experts": 8, "moe_intermediate_size": 768, "qk_normalization": False,
        "qkv_bias": True, "use_flash_attn": False, "use_moe": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "llm_config": model.text | {"_name_or_path": "./pretrained/Qwen", "moe_config": None, "use_bfloat16": True},
        "vision_config": vision, "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "hidden_size": model.text["hidden_size"], "image_fold": None, "max_dynamic_patch": 12, "min_dynamic_patch": 1,
        "pad2square": False, "ps_version": "v2", "select_layer": -1, "system_message": None,
        "template": "internvl2_5", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": None, "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
    }  # fmt: skip


def native_config(model: Released) -> dict[str, Any]:
    """`config.json` of the -HF folder, as transformers 4 wrote it."""
    vision = VIT_300M | {
        "architectures": ["InternVisionModel"], "model_type": "internvl_vision", "image_size": [448, 448],
        "patch_size": [14, 14], "attention_bias": True, "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "initializer_factor": 0.1, "initializer_range": 1e-10,
        "layer_norm_eps": 1e-6, "layer_scale_init_value": 0.1, "norm_type": "layer_norm", "num_channels": 3,
        "projection_dropout": 0.0, "torch_dtype": "bfloat16", "use_absolute_position_embeddings": True,
        "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False,
    }  # fmt: skip
    return {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "downsample_ratio": 0.5,
        "image_seq_length": 256, "image_token_id": 151667 if model.text["model_type"] == "qwen2" else 151671,
        "projector_hidden_act": "gelu", "text_config": model.text, "vision_config": vision,
        "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }  # fmt: skip
