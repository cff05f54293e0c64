"""The `config.json` of an upcycled InternVL, in either layout: Qwen3 becomes Qwen3-MoE."""

import copy
from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout

# Qwen3-only keys, which describe sliding attention that is switched off.
DROPPED_TEXT_KEYS = ("layer_types", "max_window_layers")


def upcycled_config(hf_config: Mapping[str, Any], expert_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` dict of the model with experts, in the layout of `hf_config`.

    Args:
        hf_config: of a dense InternVL.
        expert_keys: `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `norm_topk_prob` and
            `mlp_only_layers`, as the text config shall hold them.
    Raises:
        ConfigError: the text model is not Qwen3.
    """
    config = copy.deepcopy(dict(hf_config))
    section = "llm_config" if is_chat_layout(config) else "text_config"
    text = config[section]
    if text["model_type"] != "qwen3":
        raise ConfigError(
            "An InternVL with this text model cannot be upcycled.",
            got=f"{section}.model_type: {text['model_type']}",
            expected="qwen3",
            remedy="upcycle an InternVL3.5: its text model is Qwen3; InternVL3's is Qwen2.5, with biased projections",
        )
    for key in DROPPED_TEXT_KEYS:
        text.pop(key, None)
    text |= {"model_type": "qwen3_moe", "decoder_sparse_step": 1, **expert_keys}
    if "architectures" in text:
        text["architectures"] = ["Qwen3MoeForCausalLM"]
    return config
