"""InternVL on Megatron: transformers' own vision tower and projector in front of Megatron's decoder."""

from collections.abc import Mapping
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from transformers import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.transformer_config import build_transformer_config, building_device
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout, native_config
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel


class InternVLModel(VisionLanguageModel):
    """InternVL3 / 3.5 with a Qwen2 or Qwen3 language model, dense or with experts."""

    def __init__(
        self,
        config: TransformerConfig,
        architecture: InternVLArchitecture,
        hf_config: InternVLConfig,
        is_first_stage: bool,
        is_last_stage: bool,
    ):
        vision_tower = projector = None
        if is_first_stage:
            vision_tower = InternVLVisionModel._from_config(hf_config.vision_config, attn_implementation="sdpa")
            projector = InternVLMultiModalProjector(hf_config)
            vision_tower.to(config.params_dtype), projector.to(config.params_dtype)
        super().__init__(config, architecture.text, vision_tower, projector, is_first_stage, is_last_stage)
        self.downsample_ratio = hf_config.downsample_ratio

    def image_features(self, batch: TokenBatch) -> Tensor:
        """[tiles, 3, H, W] -> [tiles * tokens a tile, D]: tower without class token, pixel shuffle, projector."""
        dtype = self.projector.linear_1.weight.dtype
        patches = self.vision_tower(pixel_values=batch.pixel_values.to(dtype)).last_hidden_state[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        grid = patches.reshape(patches.shape[0], side, side, -1)
        return self.projector(pixel_shuffle(grid, self.downsample_ratio)).flatten(0, 1)


def pixel_shuffle(grid: Tensor, ratio: float) -> Tensor:
    """Folds each 1/ratio x 1/ratio block of patches into channels: [b, h, w, c] -> [b, h*ratio * w*ratio, c/ratio^2].

    The order of channels is InternVL's (v2 of its pixel shuffle).
    """
    batch, height, width, channels = grid.shape
    grid = grid.reshape(batch, height, int(width * ratio), int(channels / ratio)).permute(0, 2, 1, 3)
    grid = grid.reshape(batch, int(width * ratio), int(height * ratio), int(channels / ratio**2))
    return grid.permute(0, 2, 1, 3).flatten(1, 2).contiguous()


def build_internvl(
    hf_config: Mapping[str, Any],
    parallel: ParallelConfig,
    precision: str,
    is_first_stage: bool = True,
    is_last_stage: bool = True,
) -> InternVLModel:
    """One pipeline stage with freshly initialised weights; `hf_config` of either layout."""
    architecture = InternVLArchitecture.from_huggingface(hf_config)
    hf_config = native_config(hf_config) if is_chat_layout(hf_config) else hf_config
    config = build_transformer_config(architecture.text, parallel, precision)
    with building_device():
        return InternVLModel(config, architecture, InternVLConfig(**hf_config), is_first_stage, is_last_stage)
