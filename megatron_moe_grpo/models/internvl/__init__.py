"""InternVL: InternViT vision tower, pixel-shuffle projector, Qwen2, Qwen3 or Qwen3-MoE language model."""

from megatron_moe_grpo.models.internvl.config import InternVLArchitecture, VisionSizes

__all__ = ["InternVLArchitecture", "VisionSizes"]
