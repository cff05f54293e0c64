"""The sizes of an InternVL model, read strictly from its Hugging Face `config.json`; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.errors import ConfigError

TEXT_MODELS = ("qwen3", "qwen3_moe")
VISION_NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """The language model: Qwen3 (no experts) or Qwen3-MoE (every layer routed)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    """Inner width of the dense feed-forward; unused where every layer is routed."""
    vocab_size: int
    """Rows of the embedding, padding rows included."""
    max_positions: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    """The output layer is the embedding."""
    num_experts: int | None = None
    """N; None: dense."""
    num_active: int | None = None
    """K; None: dense."""
    moe_ffn_size: int | None = None
    """Inner width of one expert; None: dense."""
    renormalise: bool = False
    """The K combination weights are divided by their sum (`norm_topk_prob`)."""


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

    text: TextSizes
    vision: VisionSizes
    shuffle_factor: int
    """Pixel shuffle joins shuffle_factor x shuffle_factor patches into one image token (1 / downsample_ratio)."""
    image_token_id: int
    image_seq_length: int
    """Image tokens of one picture."""

    @property
    def projector_input_size(self) -> int:
        """Width of a pixel-shuffled patch."""
        return self.vision.hidden_size * self.shuffle_factor**2

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> "InternVLArchitecture":
        """Reads a `config.json` dict.

        Raises:
            ConfigError: a key is missing, a value has the wrong type, or the model uses an unsupported feature.
        """
        _only(config, "model_type", ("internvl",))
        _only(config, "vision_feature_layer", (-1,), default=-1)
        _only(config, "vision_feature_select_strategy", ("default",), default="default")
        _only(config, "projector_hidden_act", ("gelu",), default="gelu")
        ratio = _value(config, "downsample_ratio", float)
        if ratio <= 0 or (1 / ratio) % 1:
            raise ConfigError(
                "The pixel shuffle must join whole patches.",
                got=f"downsample_ratio: {ratio}",
                expected="1, 1/2, 1/4, ...",
            )
        architecture = cls(
            text=_text_sizes(_value(config, "text_config", dict), config),
            vision=_vision_sizes(_value(config, "vision_config", dict)),
            shuffle_factor=round(1 / ratio),
            image_token_id=_value(config, "image_token_id", int),
            image_seq_length=_value(config, "image_seq_length", int),
        )
        _check_image_tokens(architecture)
        return architecture


def _text_sizes(text: Mapping[str, Any], config: Mapping[str, Any]) -> TextSizes:
    if text.get("model_type") == "qwen2":
        raise ConfigError(
            "Qwen2 language models are not supported yet.",
            got="text_config.model_type: qwen2",
            expected=" or ".join(TEXT_MODELS),
        )
    _only(text, "model_type", TEXT_MODELS)
    _only(text, "hidden_act", ("silu",))
    _only(text, "attention_bias", (False,), default=False)
    _only(text, "use_sliding_window", (False,), default=False)
    # InternVLConfig.tie_word_embeddings overrides the text config's in transformers 5.
    tie_owner = config if "tie_word_embeddings" in config else text
    sizes = TextSizes(
        hidden_size=_value(text, "hidden_size", int),
        num_layers=_value(text, "num_hidden_layers", int),
        num_heads=_value(text, "num_attention_heads", int),
        num_kv_heads=_value(text, "num_key_value_heads", int),
        head_dim=_value(text, "head_dim", int),
        ffn_size=_value(text, "intermediate_size", int),
        vocab_size=_value(text, "vocab_size", int),
        max_positions=_value(text, "max_position_embeddings", int),
        rope_theta=_rope_theta(text),
        rms_norm_eps=_value(text, "rms_norm_eps", float),
        tied=_value(tie_owner, "tie_word_embeddings", bool),
        **_expert_sizes(text),
    )
    if sizes.num_heads % sizes.num_kv_heads:
        raise ConfigError(
            "Query heads must divide into the key-value groups.",
            got=f"{sizes.num_heads} query heads, {sizes.num_kv_heads} key-value heads",
        )
    return sizes


def _expert_sizes(text: Mapping[str, Any]) -> dict[str, Any]:
    if text["model_type"] == "qwen3":
        return {}
    if text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(
            "Either every layer is routed or none is.",
            got=f"mlp_only_layers: {text.get('mlp_only_layers')}, decoder_sparse_step: {text['decoder_sparse_step']}",
            expected="mlp_only_layers: [], decoder_sparse_step: 1",
        )
    # transformers 5 writes num_local_experts where version 4 wrote num_experts.
    experts_key = "num_local_experts" if "num_local_experts" in text else "num_experts"
    num_experts = _value(text, experts_key, int)
    num_active = _value(text, "num_experts_per_tok", int)
    if num_active > num_experts:
        raise ConfigError("More active experts than experts.", got=f"K = {num_active}, N = {num_experts}")
    return {
        "num_experts": num_experts,
        "num_active": num_active,
        "moe_ffn_size": _value(text, "moe_intermediate_size", int),
        "renormalise": _value(text, "norm_topk_prob", bool),
    }


def _rope_theta(text: Mapping[str, Any]) -> float:
    """transformers 5 writes `rope_parameters`; version 4 wrote `rope_theta` beside `rope_scaling`."""
    rope = text.get("rope_parameters") or {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ConfigError(
            "Scaled rotary embeddings are not supported.", got=f"rope_type: {rope_type}", expected="rope_type: default"
        )
    return _value(rope, "rope_theta", float)


def _vision_sizes(vision: Mapping[str, Any]) -> VisionSizes:
    _only(vision, "model_type", ("internvl_vision",), default="internvl_vision")
    _only(vision, "hidden_act", ("gelu",))
    _only(vision, "num_channels", (3,), default=3)
    _only(vision, "use_mask_token", (False,), default=False)
    _only(vision, "use_absolute_position_embeddings", (True,), default=True)
    _only(vision, "norm_type", VISION_NORMS)
    return VisionSizes(
        hidden_size=_value(vision, "hidden_size", int),
        num_layers=_value(vision, "num_hidden_layers", int),
        num_heads=_value(vision, "num_attention_heads", int),
        ffn_size=_value(vision, "intermediate_size", int),
        image_size=_square_side(vision, "image_size"),
        patch_size=_square_side(vision, "patch_size"),
        attention_bias=_value(vision, "attention_bias", bool),
        qk_norm=_value(vision, "use_qk_norm", bool),
        norm_type=vision["norm_type"],
        mean_pooling=_value(vision, "use_mean_pooling", bool),
        layer_norm_eps=_value(vision, "layer_norm_eps", float),
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
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise ConfigError("Pictures and patches must be square.", got=f"{key}: {value}")
    return sides[0]


def _only(section: Mapping[str, Any], key: str, supported: tuple[object, ...], default: object = None) -> None:
    got = section.get(key, default)
    if got not in supported:
        raise ConfigError(
            "This model uses a feature that is not supported.",
            got=f"{key}: {got}",
            expected=f"{key}: {' or '.join(map(str, supported))}",
        )


def _value(section: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value under a key that must be there, with its type; an int counts as a float, a bool never as an int."""
    got = section.get(key)
    right = isinstance(got, int | float) if kind is float else isinstance(got, kind)
    if not right or (isinstance(got, bool) and kind is not bool):
        raise ConfigError(
            "config.json lacks a value or has one of the wrong type.",
            got=f"{key}: {got!r}",
            expected=f"{key}: a value of type {kind.__name__}",
        )
    return kind(got)
