"""Qwen2-VL on Megatron: transformers' own vision tower and patch merger in front of Megatron's decoder with M-RoPE."""

from collections.abc import Mapping
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.transformer_config import build_transformer_config, building_device
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel


class Qwen2VLModel(VisionLanguageModel):
    """Qwen2-VL with a dense or an upcycled Qwen2 language model."""

    def __init__(
        self,
        config: TransformerConfig,
        architecture: Qwen2VLArchitecture,
        vision_config: Qwen2VLVisionConfig,
        is_first_stage: bool,
        is_last_stage: bool,
    ):
        vision_tower = projector = None
        if is_first_stage:
            vision_tower = Qwen2VisionTransformerPretrainedModel._from_config(
                vision_config, attn_implementation="sdpa", dtype=config.params_dtype
            )
            # A part of its own, so that tower and projector are frozen, named and counted apart as in every family.
            projector, vision_tower.merger = vision_tower.merger, nn.Identity()
            _keep_frequencies_fp32(vision_tower)
        super().__init__(config, architecture.text, vision_tower, projector, is_first_stage, is_last_stage)

    def image_features(self, batch: TokenBatch) -> Tensor:
        """[patches, 3 * 2 * patch * patch] -> [vision tokens, D]; each frame pair attends to itself alone."""
        dtype = self.projector.mlp[0].weight.dtype
        patches = self.vision_tower(batch.pixel_values.to(dtype), grid_thw=batch.grid_V3).last_hidden_state
        return self.projector(patches)


def _keep_frequencies_fp32(vision_tower: Qwen2VisionTransformerPretrainedModel) -> None:
    """A plain attribute instead of a buffer: Megatron's Float16Module rounds buffers to bf16, transformers does not."""
    rotary = vision_tower.rotary_pos_emb
    frequencies = rotary.inv_freq.detach().clone()
    del rotary.inv_freq
    rotary.inv_freq = frequencies


def build_qwen2_vl(
    hf_config: Mapping[str, Any],
    parallel: ParallelConfig,
    precision: str,
    is_first_stage: bool = True,
    is_last_stage: bool = True,
) -> Qwen2VLModel:
    """One pipeline stage with freshly initialised weights."""
    architecture = Qwen2VLArchitecture.from_huggingface(hf_config)
    config = build_transformer_config(architecture.text, parallel, precision)
    # Older folders give this section the whole model's name; its class knows its own.
    vision = {key: value for key, value in hf_config["vision_config"].items() if key != "model_type"}
    with building_device():
        return Qwen2VLModel(config, architecture, Qwen2VLVisionConfig(**vision), is_first_stage, is_last_stage)
