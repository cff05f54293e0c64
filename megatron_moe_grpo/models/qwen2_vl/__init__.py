"""Qwen2-VL: dynamic-resolution vision tower, patch merger, Qwen2 language model with multimodal rotary positions."""

from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture, VisionSizes

__all__ = ["Qwen2VLArchitecture", "VisionSizes"]
