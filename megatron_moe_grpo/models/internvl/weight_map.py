"""Which Hugging Face weight of an InternVL checkpoint becomes which Megatron-Core weight.

Hugging Face side: the layout that transformers' `InternVLForConditionalGeneration` writes to disk
(`language_model.model.*`, `language_model.lm_head.weight`, `vision_tower.*`, `multi_modal_projector.*`), or the
original one (`chat_weight_map.py`).
Megatron side: transformers' vision tower and projector under `vision_tower.*` and `projector.*`, and a `GPTModel`
built from the local layer spec, with `SequentialMLP` experts, under `language_model.*`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_moe_grpo.conversion import Rename, Rule
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.errors import ConfigError, ConversionError
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout
from megatron_moe_grpo.models.internvl.chat_weight_map import original_rules
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture, VisionSizes
from megatron_moe_grpo.models.text_weight_map import text_rules

Shapes = dict[str, Shape]


def weight_map(hf_config: Mapping[str, Any]) -> list[Rule]:
    """The rules of one checkpoint, every weight named with its shape.

    Raises:
        ConversionError: `hf_config` describes a model that this map does not cover.
    """
    try:
        architecture = InternVLArchitecture.from_huggingface(hf_config)
    except ConfigError as error:
        raise ConversionError(error.what, got=error.got, expected=error.expected, remedy=error.remedy) from error
    vision_rules = [*_vision_rules(architecture.vision), *_projector_rules(architecture)]
    return [
        *(original_rules(vision_rules) if is_chat_layout(hf_config) else vision_rules),
        *text_rules(architecture.text, prefix="language_model.model.", lm_head="language_model.lm_head.weight"),
    ]


def _renames(shapes: Shapes, hf_prefix: str, prefix: str, repeat: Mapping[str, int]) -> list[Rule]:
    return [Rule(Rename(), {hf_prefix + key: shape}, prefix + key, repeat) for key, shape in shapes.items()]


def _linear(name: str, num_out: int, num_in: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (num_out, num_in)} | ({f"{name}.bias": (num_out,)} if bias else {})


def _norm(name: str, size: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (size,)} | ({f"{name}.bias": (size,)} if bias else {})


def _vision_rules(vision: VisionSizes) -> Sequence[Rule]:
    width, patch = vision.hidden_size, vision.patch_size
    stem: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, vision.num_patches + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if not vision.mean_pooling:
        stem |= _norm("layernorm", width)
    layer: Shapes = {"lambda_1": (width,), "lambda_2": (width,)}
    for name in ("layernorm_before", "layernorm_after"):
        layer |= _norm(name, width, bias=vision.norm_type == "layer_norm")
    for name in ("q_proj", "k_proj", "v_proj"):
        layer |= _linear(f"attention.{name}", width, width, bias=vision.attention_bias)
    if vision.qk_norm:
        layer |= _norm("attention.q_norm", width, bias=False) | _norm("attention.k_norm", width, bias=False)
    layer |= _linear("attention.projection_layer", width, width)
    layer |= _linear("mlp.fc1", vision.ffn_size, width) | _linear("mlp.fc2", width, vision.ffn_size)
    at_layer = {f"encoder.layer.{{layer}}.{key}": shape for key, shape in layer.items()}
    return [
        *_renames(stem, "vision_tower.", "vision_tower.", {}),
        *_renames(at_layer, "vision_tower.", "vision_tower.", {"layer": vision.num_layers}),
    ]


def _projector_rules(architecture: InternVLArchitecture) -> Sequence[Rule]:
    width, text_width = architecture.projector_input_size, architecture.text.hidden_size
    shapes = _norm("layer_norm", width) | _linear("linear_1", text_width, width)
    return _renames(shapes | _linear("linear_2", text_width, text_width), "multi_modal_projector.", "projector.", {})
