"""Qwen2-VL whose feed-forwards are routed experts, for stock transformers 5.20 or newer.

transformers has no such class, so this file travels with the folders that megatron-moe-grpo exports:

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

It needs transformers and nothing else.  Vision tower, attention and rotary positions are Qwen2-VL's; router and experts
are Qwen3-MoE's: `model.layers.N.mlp.gate.weight` and `model.layers.N.mlp.experts.E.{gate,up,down}_proj.weight` on disk.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock


class Qwen2VLMoeTextConfig(Qwen2VLTextConfig):
    """Qwen2-VL's text config and the experts."""

    model_type = "qwen2_vl_moe_text"

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 18944
    norm_topk_prob: bool = False
    mlp_only_layers: list[int] | None = None


class Qwen2VLMoeConfig(Qwen2VLConfig):
    """Qwen2-VL's config around the text config above."""

    model_type = "qwen2_vl_moe"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(config_class=Qwen2VLVisionConfig),
        "text_config": SubConfigSpec(config_class=Qwen2VLMoeTextConfig),
    }


class Qwen2VLMoeForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """Qwen2-VL with a router and experts in every layer that `mlp_only_layers` does not name."""

    config: Qwen2VLMoeConfig
    config_class = Qwen2VLMoeConfig

    def __init__(self, config: Qwen2VLMoeConfig):
        super().__init__(config)
        text = config.text_config
        for index, layer in enumerate(self.model.language_model.layers):
            if index not in (text.mlp_only_layers or ()):
                layer.mlp = Qwen3MoeSparseMoeBlock(text)
                # Here and not in _init_weights, because the decoder inside would only call its own.
                for parameter in layer.mlp.parameters():
                    init.normal_(parameter, mean=0.0, std=text.initializer_range)
        self.post_init()


# Names on disk are Qwen2-VL's, and experts are stacked on loading and taken apart on saving as in Qwen2-MoE.
register_checkpoint_conversion_mapping(
    "Qwen2VLMoeForConditionalGeneration",
    [
        *get_checkpoint_conversion_mapping("Qwen2VLForConditionalGeneration"),
        *get_checkpoint_conversion_mapping("qwen2_moe"),
    ],
    overwrite=True,
)
AutoConfig.register(Qwen2VLMoeConfig.model_type, Qwen2VLMoeConfig, exist_ok=True)
AutoModelForImageTextToText.register(Qwen2VLMoeConfig, Qwen2VLMoeForConditionalGeneration, exist_ok=True)
