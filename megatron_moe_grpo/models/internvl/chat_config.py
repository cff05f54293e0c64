"""InternVL's original `InternVLChatModel` config, read strictly as the native InternVLConfig it stands for; no torch.

`auto_map` and the code beside it are never looked at.  Left out, as they change no logits: `drop_path_rate` (their
training drops whole residual branches, transformers' tower cannot), `use_flash_attn`, and their vision tower's own
mixture-of-experts settings, which no released model uses.
"""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.config_values import require_one_of, require_size, require_value
from megatron_moe_grpo.models.internvl.prompt_template import CONTEXT_TOKEN, END_OF_TURN

CHAT_MODEL_TYPE = "internvl_chat"
# Of the language model's section; the first three point at code or places, the others describe nothing that exists.
DROPPED_TEXT_KEYS = ("_name_or_path", "auto_map", "attn_implementation", "moe_config", "use_bfloat16")


def is_chat_layout(config: Mapping[str, Any]) -> bool:
    """True for the original layout, False for transformers' own."""
    return config.get("model_type") == CHAT_MODEL_TYPE


def text_section(config: Mapping[str, Any]) -> str:
    """The key under which a config of either layout describes its language model."""
    return "llm_config" if is_chat_layout(config) else "text_config"


def native_config(config: Mapping[str, Any], vocabulary: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The InternVLConfig dict of the same model.

    Args:
        config: a `config.json` dict of the original layout.
        vocabulary: the tokenizer's token -> id.  It alone knows `image_token_id` and the end of turn (InternVL3's
            `llm_config.eos_token_id` names another token); without it both are left as they are, which is enough to
            build and convert, not to run the model in transformers.
    Raises:
        ConfigError: a key is missing, a value has the wrong type, or the model uses an unsupported feature.
    """
    _refuse_other_features(config)
    vision, text = require_value(config, "vision_config", dict), require_value(config, "llm_config", dict)
    image_size, patch_size = require_size(vision, "image_size"), require_size(vision, "patch_size")
    require_one_of(config, "force_image_size", (image_size, None))
    joined = shuffle_factor(config)
    native = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": {key: value for key, value in text.items() if key not in DROPPED_TEXT_KEYS},
        "vision_config": _vision_config(vision, image_size, patch_size),
        "downsample_ratio": config["downsample_ratio"],
        "image_seq_length": (image_size // patch_size // joined) ** 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        # transformers 5 ties where this is absent; their config classes have False.
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
    }
    native |= {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    if vocabulary is not None:
        native["image_token_id"] = vocabulary[CONTEXT_TOKEN]
        native["text_config"]["eos_token_id"] = vocabulary[END_OF_TURN]
    return native


def shuffle_factor(config: Mapping[str, Any]) -> int:
    """1 / downsample_ratio, of either layout.

    Raises:
        ConfigError: the ratio is missing or no fraction of that form.
    """
    ratio = require_value(config, "downsample_ratio", float)
    if not 0 < ratio <= 1 or (1 / ratio) % 1:
        raise ConfigError(
            "The pixel shuffle must join whole patches.",
            got=f"downsample_ratio: {ratio}",
            expected="1, 1/2, 1/4, ...",
        )
    return round(1 / ratio)


def native_image_settings(config: Mapping[str, Any], clip_settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `preprocessor_config.json` says in the native layout.

    Tiling comes from `config`.  Of `clip_settings` (the folder's own `preprocessor_config.json`; their code never reads
    it, so it may be missing and its cropping is not meant) come mean and standard deviation; without them ImageNet's,
    which their code has built in.

    Raises:
        ConfigError: a setting is missing or asks for what the native layout cannot say.
    """
    is_tiled = require_value(config, "dynamic_image_size", bool)
    if is_tiled:
        require_one_of(config, "use_thumbnail", (True,))
    side = require_size(require_value(config, "vision_config", dict), "image_size")
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": clip_settings.get("image_mean", [0.485, 0.456, 0.406]),
        "image_std": clip_settings.get("image_std", [0.229, 0.224, 0.225]),
        "do_convert_rgb": True,
        "crop_to_patches": is_tiled,
        "min_patches": require_size(config, "min_dynamic_patch"),
        "max_patches": require_size(config, "max_dynamic_patch"),
    }


def _refuse_other_features(config: Mapping[str, Any]) -> None:
    require_one_of(config, "model_type", (CHAT_MODEL_TYPE,))
    require_one_of(config, "select_layer", (-1,))
    # v1 leaves pictures transposed; only InternVL 1.x has it.
    require_one_of(config, "ps_version", ("v2",))
    require_one_of(config, "template", ("internvl2_5",))
    require_one_of(config, "pad2square", (False,), default=False)
    for key in ("use_backbone_lora", "use_llm_lora"):
        if config.get(key, 0):
            raise ConfigError(
                "The model carries LoRA adapters.",
                got=f"{key}: {config[key]}",
                expected=f"{key}: 0",
                remedy="merge them into the weights with InternVL's own tools/merge_lora.py first",
            )


def _vision_config(vision: Mapping[str, Any], image_size: int, patch_size: int) -> dict[str, Any]:
    has_qk_norm = require_value(vision, "qk_normalization", bool)
    if has_qk_norm:
        # transformers' norm of queries and keys has this one built in.
        require_one_of(vision, "layer_norm_eps", (1e-6,))
    copied = {
        "hidden_size": int,
        "num_hidden_layers": int,
        "num_attention_heads": int,
        "intermediate_size": int,
        "hidden_act": str,
        "norm_type": str,
        "layer_norm_eps": float,
        "initializer_range": float,
        "attention_dropout": float,
    }
    return {
        "model_type": "internvl_vision",
        "image_size": [image_size, image_size],
        "patch_size": [patch_size, patch_size],
        "num_channels": vision.get("num_channels", 3),
        "attention_bias": require_value(vision, "qkv_bias", bool),
        "use_qk_norm": has_qk_norm,
        "layer_scale_init_value": require_value(vision, "initializer_factor", float),
        "projection_dropout": require_value(vision, "dropout", float),
        "hidden_dropout_prob": 0.0,
        "use_mask_token": False,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,
    } | {key: require_value(vision, key, kind) for key, kind in copied.items()}
