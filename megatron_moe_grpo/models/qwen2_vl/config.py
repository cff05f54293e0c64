"""The sizes of a Qwen2-VL model, read strictly from its Hugging Face `config.json`; needs no torch.

Three spellings: the flat one of transformers 4 (the folders on the hub), the nested `text_config` of transformers 5,
and our own `qwen2_vl_moe`, the nested one with experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.config_values import MAX_SIZE, require_one_of, require_size, require_value
from megatron_moe_grpo.models.text_config import read_decoder_sizes

DENSE_MODEL, MOE_MODEL = "qwen2_vl", "qwen2_vl_moe"
TEXT_MODELS = {DENSE_MODEL: "qwen2_vl_text", MOE_MODEL: "qwen2_vl_moe_text"}


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The vision tower, its patch merger (the projector) not counted."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    patch_size: int
    """Side of a patch, pixels."""
    temporal_patch_size: int
    """Frames that one patch spans."""
    merge_size: int
    """merge_size x merge_size patches become one vision token."""


@dataclass(frozen=True, kw_only=True)
class Qwen2VLArchitecture:
    """All that the weight map, the Megatron model and the processor need to know about a checkpoint."""

    text: DecoderSizes
    vision: VisionSizes
    image_token_id: int
    video_token_id: int

    @property
    def projector_input_size(self) -> int:
        """Width of the patches that are merged into one token."""
        return self.vision.hidden_size * self.vision.merge_size**2

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> "Qwen2VLArchitecture":
        """Reads a `config.json` dict.

        Raises:
            ConfigError: a key is missing, a value has the wrong type, or the model uses an unsupported feature.
        """
        require_one_of(config, "model_type", tuple(TEXT_MODELS))
        text = _text_section(config)
        # Our class with experts goes by `mlp_only_layers` alone.
        require_one_of(text, "decoder_sparse_step", (1,), default=1)
        vision = require_value(config, "vision_config", dict)
        # transformers ties if either section says so.
        ties = [require_value(part, "tie_word_embeddings", bool) for part in (config, text) if _says_tied(part)]
        architecture = cls(
            text=read_decoder_sizes(text, ties_embeddings=any(ties)),
            vision=_vision_sizes(vision),
            image_token_id=require_value(config, "image_token_id", int),
            video_token_id=require_value(config, "video_token_id", int),
        )
        _check_mrope(architecture.text)
        if require_size(vision, "hidden_size") != architecture.text.hidden_size:
            raise ConfigError(
                "The patch merger does not lead into the language model.",
                got=f"vision_config.hidden_size: {vision['hidden_size']}",
                expected=f"the language model's hidden_size, {architecture.text.hidden_size}",
            )
        return architecture


def _says_tied(section: Mapping[str, Any]) -> bool:
    return "tie_word_embeddings" in section


def _text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's keys with its own `model_type`, from either spelling."""
    expected = TEXT_MODELS[config["model_type"]]
    if "text_config" not in config:
        return {**config, "model_type": expected}
    text = require_value(config, "text_config", dict)
    require_one_of(text, "model_type", (expected,))
    return text


def _vision_sizes(vision: Mapping[str, Any]) -> VisionSizes:
    # Folders written by transformers before 4.54 call this section by the whole model's name.
    require_one_of(vision, "model_type", ("qwen2_vl_vision", "qwen2_vl"), default="qwen2_vl_vision")
    require_one_of(vision, "hidden_act", ("quick_gelu",), default="quick_gelu")
    require_one_of(vision, "in_channels", (3,), default=3)
    require_one_of(vision, "in_chans", (3,), default=3)
    patch_size = require_size(vision, "patch_size")
    require_one_of(vision, "spatial_patch_size", (patch_size,), default=patch_size)
    width, num_heads = require_size(vision, "embed_dim"), require_size(vision, "num_heads")
    if width % (4 * num_heads):
        raise ConfigError(
            "The vision tower's heads must hold pairs for height and for width.",
            got=f"embed_dim {width} over {num_heads} heads",
            expected="a head size that 4 divides",
        )
    return VisionSizes(
        hidden_size=width,
        num_layers=require_size(vision, "depth"),
        num_heads=num_heads,
        ffn_size=_ffn_size(vision, width),
        patch_size=patch_size,
        temporal_patch_size=require_size(vision, "temporal_patch_size"),
        merge_size=require_size(vision, "spatial_merge_size"),
    )


def _ffn_size(vision: Mapping[str, Any], width: int) -> int:
    ffn_size = width * require_value(vision, "mlp_ratio", float)
    if not 1 <= ffn_size <= MAX_SIZE:
        raise ConfigError(
            "The vision tower's feed-forward has no such width.",
            got=f"embed_dim {width}, mlp_ratio: {vision['mlp_ratio']}",
            expected=f"a product from 1 to {MAX_SIZE:,}",
        )
    return int(ffn_size)


def _check_mrope(text: DecoderSizes) -> None:
    section = text.mrope_section
    if section is None or len(section) != 3 or sum(section) * 2 != text.head_dim:
        raise ConfigError(
            "The rotary section does not fit the head.",
            got=f"mrope_section: {section}, head size {text.head_dim}",
            expected=f"three counts that add up to {text.head_dim // 2}",
        )
