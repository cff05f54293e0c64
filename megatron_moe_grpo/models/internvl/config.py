"""The sizes of an InternVL model, read strictly from its Hugging Face `config.json`; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.config_values import require_one_of, require_size, require_value
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout, native_config, shuffle_factor
from megatron_moe_grpo.models.text_config import read_decoder_sizes

TEXT_MODELS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
VISION_NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """InternViT."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    image_size: int
    """Side of the square picture, pixels."""
    patch_size: int
    """Side of a patch, pixels."""
    attention_bias: bool
    qk_norm: bool
    norm_type: str
    mean_pooling: bool
    """True: no final norm, as transformers reads `use_mean_pooling`."""
    layer_norm_eps: float

    @property
    def num_patches(self) -> int:
        """Patches of one picture, class token not counted."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class InternVLArchitecture:
    """All that the weight map, the Megatron model and the processor need to know about a checkpoint."""

    text: DecoderSizes
    vision: VisionSizes
    shuffle_factor: int
    """Pixel shuffle joins shuffle_factor x shuffle_factor patches into one image token (1 / downsample_ratio)."""
    image_token_id: int | None
    """None in the original layout, whose config.json leaves it to the tokenizer."""
    image_seq_length: int
    """Image tokens of one tile."""

    @property
    def projector_input_size(self) -> int:
        """Width of a pixel-shuffled patch."""
        return self.vision.hidden_size * self.shuffle_factor**2

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> "InternVLArchitecture":
        """Reads a `config.json` dict of transformers' own or of the original layout.

        Raises:
            ConfigError: a key is missing, a value has the wrong type, or the model uses an unsupported feature.
        """
        is_original = is_chat_layout(config)
        config = native_config(config) if is_original else config
        require_one_of(config, "model_type", ("internvl",))
        require_one_of(config, "vision_feature_layer", (-1,), default=-1)
        require_one_of(config, "vision_feature_select_strategy", ("default",), default="default")
        require_one_of(config, "projector_hidden_act", ("gelu",), default="gelu")
        architecture = cls(
            text=_text_sizes(require_value(config, "text_config", dict), config),
            vision=_vision_sizes(require_value(config, "vision_config", dict)),
            shuffle_factor=shuffle_factor(config),
            image_token_id=None if is_original else require_value(config, "image_token_id", int),
            image_seq_length=require_size(config, "image_seq_length"),
        )
        _check_image_tokens(architecture)
        return architecture


def _text_sizes(text: Mapping[str, Any], config: Mapping[str, Any]) -> DecoderSizes:
    require_one_of(text, "model_type", TEXT_MODELS)
    # InternVLConfig.tie_word_embeddings overrides the text config's in transformers 5.  Released folders, written by
    # version 4, have neither: Qwen's default there was False, and version 5 goes by the weights.
    tie_owner = {"tie_word_embeddings": False, **text, **config}
    return read_decoder_sizes(text, require_value(tie_owner, "tie_word_embeddings", bool))


def _vision_sizes(vision: Mapping[str, Any]) -> VisionSizes:
    require_one_of(vision, "model_type", ("internvl_vision",), default="internvl_vision")
    require_one_of(vision, "hidden_act", ("gelu",))
    require_one_of(vision, "num_channels", (3,), default=3)
    require_one_of(vision, "use_mask_token", (False,), default=False)
    require_one_of(vision, "use_absolute_position_embeddings", (True,), default=True)
    require_one_of(vision, "norm_type", VISION_NORMS)
    return VisionSizes(
        hidden_size=require_size(vision, "hidden_size"),
        num_layers=require_size(vision, "num_hidden_layers"),
        num_heads=require_size(vision, "num_attention_heads"),
        ffn_size=require_size(vision, "intermediate_size"),
        image_size=_square_side(vision, "image_size"),
        patch_size=_square_side(vision, "patch_size"),
        attention_bias=require_value(vision, "attention_bias", bool),
        qk_norm=require_value(vision, "use_qk_norm", bool),
        norm_type=vision["norm_type"],
        mean_pooling=require_value(vision, "use_mean_pooling", bool),
        layer_norm_eps=require_value(vision, "layer_norm_eps", float),
    )


def _check_image_tokens(architecture: InternVLArchitecture) -> None:
    vision = architecture.vision
    side = vision.image_size // vision.patch_size
    num_tokens = vision.num_patches // architecture.shuffle_factor**2
    fits = vision.image_size % vision.patch_size == 0 and side % architecture.shuffle_factor == 0
    if not fits or num_tokens != architecture.image_seq_length:
        raise ConfigError(
            "image_seq_length does not follow from the picture's size.",
            got=f"image_seq_length: {architecture.image_seq_length}, image {vision.image_size} px, patch "
            f"{vision.patch_size} px, pixel shuffle by {architecture.shuffle_factor}",
            expected="image_seq_length = (image_size / patch_size * downsample_ratio) ** 2, all divisions exact",
        )


def _square_side(section: Mapping[str, Any], key: str) -> int:
    value = section.get(key)
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ConfigError("Pictures and patches must be square.", got=f"{key}: {value}")
    return require_size({key: sides[0]}, key)
