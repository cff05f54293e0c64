"""InternVL on Megatron: transformers' own vision tower and projector in front of Megatron's decoder."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from transformers import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.transformer_config import DecoderSizes, build_transformer_config
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.vlm import VisionLanguageModel


class InternVLModel(VisionLanguageModel):
    """InternVL3 / 3.5 with a Qwen3 or Qwen3-MoE language model."""

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
        sizes = decoder_sizes(architecture)
        super().__init__(config, sizes, vision_tower, projector, is_first_stage, is_last_stage)
        self.downsample_ratio = hf_config.downsample_ratio

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """[images, 3, H, W] -> [images * tokens an image, D]: tower without class token, pixel shuffle, projector."""
        dtype = self.projector.linear_1.weight.dtype
        patches = self.vision_tower(pixel_values=pixel_values.to(dtype)).last_hidden_state[:, 1:]
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


def decoder_sizes(architecture: InternVLArchitecture) -> DecoderSizes:
    """The language half, in the words of `mcore/`."""
    text = architecture.text
    return DecoderSizes(
        num_layers=text.num_layers,
        hidden_size=text.hidden_size,
        num_heads=text.num_heads,
        num_key_value_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        ffn_size=text.ffn_size,
        vocab_size=text.vocab_size,
        max_positions=text.max_positions,
        norm_epsilon=text.rms_norm_eps,
        rope_theta=text.rope_theta,
        has_qk_norm=True,
        has_qkv_bias=False,
        ties_embeddings=text.tied,
        num_experts=text.num_experts,
        expert_ffn_size=text.moe_ffn_size,
        num_active=text.num_active,
        renormalises_weights=text.renormalise,
    )


def build_internvl(
    architecture: InternVLArchitecture,
    hf_config: dict,
    parallel: ParallelConfig,
    precision: str,
    is_first_stage: bool = True,
    is_last_stage: bool = True,
) -> InternVLModel:
    """One pipeline stage with freshly initialised weights."""
    config = build_transformer_config(decoder_sizes(architecture), parallel, precision)
    config.is_hybrid_model = False
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return InternVLModel(config, architecture, InternVLConfig(**hf_config), is_first_stage, is_last_stage)
