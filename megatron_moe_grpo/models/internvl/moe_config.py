"""The `config.json` of an upcycled InternVL, in either layout: Qwen3 becomes Qwen3-MoE, Qwen2 becomes Qwen2-MoE.

Qwen2-MoE is the stock class with InternVL3's biased projections.  It has a shared expert, too: one of no width, whose
output is zero whatever its gate says.
"""

import copy
from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.models.internvl.chat_config import text_section

MODEL_CLASSES = {"qwen3_moe": "Qwen3MoeForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM"}
# Describe sliding attention that is switched off.
DROPPED_TEXT_KEYS = ("layer_types", "max_window_layers")


def upcycled_config(hf_config: Mapping[str, Any], expert_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` dict of the model with experts, in the layout of `hf_config`.

    Args:
        hf_config: of a dense InternVL that this package reads.
        expert_keys: `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `norm_topk_prob` and
            `mlp_only_layers`, as the text config shall hold them.
    """
    config = copy.deepcopy(dict(hf_config))
    text = config[text_section(config)]
    model_type = f"{text['model_type']}_moe"
    assert model_type in MODEL_CLASSES, "experts are upcycled once"
    for key in DROPPED_TEXT_KEYS:
        text.pop(key, None)
    text |= {"model_type": model_type, "decoder_sparse_step": 1, **expert_keys}
    if model_type == "qwen2_moe":
        text |= {"shared_expert_intermediate_size": 0, "qkv_bias": True}
        # Qwen2 takes null for hidden_size / num_attention_heads; Qwen2-MoE multiplies by it.
        if text.get("head_dim") is None:
            text.pop("head_dim", None)
    if "architectures" in text:
        text["architectures"] = [MODEL_CLASSES[model_type]]
    return config
