"""InternVL: InternViT vision tower, pixel-shuffle projector, Qwen2 or Qwen3 language model, dense or with experts."""

from megatron_moe_grpo.models.internvl.config import InternVLArchitecture, VisionSizes

__all__ = ["InternVLArchitecture", "VisionSizes"]
