"""Which Hugging Face weight of a Qwen2-VL checkpoint becomes which Megatron-Core weight.

Hugging Face side: the layout that transformers' `Qwen2VLForConditionalGeneration` writes to disk (`visual.*`,
`model.*`, `lm_head.weight`), with experts the same under our `qwen2_vl_moe`.  Megatron side: transformers' vision tower
under `vision_tower.*`, its patch merger under `projector.*`, and a `GPTModel` under `language_model.*`.
"""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.conversion import Rule
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture, VisionSizes
from megatron_moe_grpo.models.text_weight_map import text_rules
from megatron_moe_grpo.models.weight_map_parts import Shapes, affine, mapped_architecture, renames


def weight_map(hf_config: Mapping[str, Any]) -> list[Rule]:
    """The rules of one checkpoint, every weight named with its shape.

    Raises:
        ConversionError: `hf_config` describes a model that this map does not cover.
    """
    architecture = mapped_architecture(Qwen2VLArchitecture.from_huggingface, hf_config)
    return [
        *_vision_rules(architecture.vision),
        *_projector_rules(architecture),
        *text_rules(architecture.text, prefix="model.", lm_head="lm_head.weight"),
    ]


def _vision_rules(vision: VisionSizes) -> list[Rule]:
    width, patch = vision.hidden_size, vision.patch_size
    stem: Shapes = {"patch_embed.proj.weight": (width, 3, vision.temporal_patch_size, patch, patch)}
    block: Shapes = affine("norm1", width) | affine("norm2", width)
    # Query, key and value stay fused: the tower is transformers' own on both sides.
    block |= affine("attn.qkv", 3 * width, width) | affine("attn.proj", width, width)
    block |= affine("mlp.fc1", vision.ffn_size, width) | affine("mlp.fc2", width, vision.ffn_size)
    at_block = {f"blocks.{{block}}.{key}": shape for key, shape in block.items()}
    return [
        *renames(stem, "visual.", "vision_tower."),
        *renames(at_block, "visual.", "vision_tower.", {"block": vision.num_layers}),
    ]


def _projector_rules(architecture: Qwen2VLArchitecture) -> list[Rule]:
    merged = architecture.projector_input_size
    shapes = affine("ln_q", architecture.vision.hidden_size) | affine("mlp.0", merged, merged)
    shapes |= affine("mlp.2", architecture.text.hidden_size, merged)
    return renames(shapes, "visual.merger.", "projector.")
