"""Which Hugging Face weight of an InternVL checkpoint becomes which Megatron-Core weight.

Hugging Face side: the layout that transformers' `InternVLForConditionalGeneration` writes to disk
(`language_model.model.*`, `language_model.lm_head.weight`, `vision_tower.*`, `multi_modal_projector.*`), or the
original one (`chat_weight_map.py`).
Megatron side: transformers' vision tower and projector under `vision_tower.*` and `projector.*`, and a `GPTModel`
built from the local layer spec, with `SequentialMLP` experts, under `language_model.*`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_moe_grpo.conversion import Rule
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout, text_section
from megatron_moe_grpo.models.internvl.chat_weight_map import original_rules
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture, VisionSizes
from megatron_moe_grpo.models.text_config import has_empty_shared_expert
from megatron_moe_grpo.models.text_weight_map import text_rules
from megatron_moe_grpo.models.weight_map_parts import Shapes, affine, mapped_architecture, renames


def weight_map(hf_config: Mapping[str, Any]) -> list[Rule]:
    """The rules of one checkpoint, every weight named with its shape.

    Raises:
        ConversionError: `hf_config` describes a model that this map does not cover.
    """
    architecture = mapped_architecture(InternVLArchitecture.from_huggingface, hf_config)
    vision_rules = [*_vision_rules(architecture.vision), *_projector_rules(architecture)]
    return [
        *(original_rules(vision_rules) if is_chat_layout(hf_config) else vision_rules),
        *text_rules(
            architecture.text,
            prefix="language_model.model.",
            lm_head="language_model.lm_head.weight",
            has_empty_shared_expert=has_empty_shared_expert(hf_config[text_section(hf_config)]),
        ),
    ]


def _vision_rules(vision: VisionSizes) -> Sequence[Rule]:
    width, patch = vision.hidden_size, vision.patch_size
    stem: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, vision.num_patches + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if not vision.mean_pooling:
        stem |= affine("layernorm", width)
    layer: Shapes = {"lambda_1": (width,), "lambda_2": (width,)}
    for name in ("layernorm_before", "layernorm_after"):
        layer |= affine(name, width, bias=vision.norm_type == "layer_norm")
    for name in ("q_proj", "k_proj", "v_proj"):
        layer |= affine(f"attention.{name}", width, width, bias=vision.attention_bias)
    if vision.qk_norm:
        layer |= affine("attention.q_norm", width, bias=False) | affine("attention.k_norm", width, bias=False)
    layer |= affine("attention.projection_layer", width, width)
    layer |= affine("mlp.fc1", vision.ffn_size, width) | affine("mlp.fc2", width, vision.ffn_size)
    at_layer = {f"encoder.layer.{{layer}}.{key}": shape for key, shape in layer.items()}
    return [
        *renames(stem, "vision_tower.", "vision_tower."),
        *renames(at_layer, "vision_tower.", "vision_tower.", {"layer": vision.num_layers}),
    ]


def _projector_rules(architecture: InternVLArchitecture) -> Sequence[Rule]:
    width, text_width = architecture.projector_input_size, architecture.text.hidden_size
    shapes = affine("layer_norm", width) | affine("linear_1", text_width, width)
    return renames(shapes | affine("linear_2", text_width, text_width), "multi_modal_projector.", "projector.")
