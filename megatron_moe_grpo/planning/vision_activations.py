"""Bytes that vision tower and projector keep for the backward pass: transformers' own modules on any device."""

from collections import Counter

from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture
from megatron_moe_grpo.models.registry import Architecture
from megatron_moe_grpo.planning.activations import FP32, Bytes
from megatron_moe_grpo.planning.workload import Pictures


def vision_bytes(
    architecture: Architecture, pictures: Pictures, num_prompts: int, width: int, frozen: tuple[str, ...] = ()
) -> Bytes:
    """Of one micro-batch's pictures, each once whatever the group size.

    Args:
        width: bytes of an activation.
        frozen: `model.freeze`; a frozen tower in front of nothing that is trained keeps nothing.
    """
    kept = {
        "vision tower": _tower(architecture, pictures, width),
        "projector": _projector(architecture, pictures, width),
    }
    if "vision_tower" in frozen:
        kept["vision tower"] = 0.0
        if "projector" in frozen:
            kept["projector"] = 0.0
    return Counter({name: num_prompts * count for name, count in kept.items()})


def _tower(architecture: Architecture, pictures: Pictures, width: int) -> float:
    vision = architecture.vision
    patches, inner, hidden = pictures.num_patches, vision.ffn_size, vision.hidden_size
    if isinstance(architecture, InternVLArchitecture):
        # query, key, value, attended; inputs of the projections, both norms and fc1; two scaled branches; GELU, fc2.
        layer = patches * ((10 * hidden + 2 * inner + 4) * width + vision.num_heads * FP32)
        if vision.qk_norm:
            layer += patches * 2 * hidden * width
        return vision.num_layers * layer + pictures.num_pixel_values * width
    assert isinstance(architecture, Qwen2VLArchitecture), "a family whose vision tower is not counted"
    # Fused query, key and value; rotated query and key, attended; inputs of four projections and two norms.
    layer = patches * ((11 * hidden + 3 * inner + 4) * width + vision.num_heads * FP32)
    angles = patches * 2 * (hidden // vision.num_heads) * FP32
    return vision.num_layers * layer + angles + pictures.num_pixel_values * width


def _projector(architecture: Architecture, pictures: Pictures, width: int) -> float:
    text, tokens = architecture.text.hidden_size, pictures.num_tokens
    joined = architecture.projector_input_size
    if isinstance(architecture, InternVLArchitecture):
        return tokens * (2 * joined + 2 * text + 2) * width
    return (tokens * 3 * joined + pictures.num_patches * (architecture.vision.hidden_size + 2)) * width
