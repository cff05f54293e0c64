"""The `config.json` of an upcycled Qwen2-VL, which names the modelling file of ours that travels with it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_moe_grpo.models.qwen2_vl.config import DENSE_MODEL, MOE_MODEL, TEXT_MODELS, Qwen2VLArchitecture

MODELING_FILE = Path(__file__).with_name("modeling_qwen2_vl_moe.py")
MODEL_CLASS = "Qwen2VLMoeForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": f"{MODELING_FILE.stem}.Qwen2VLMoeConfig",
    "AutoModelForImageTextToText": f"{MODELING_FILE.stem}.{MODEL_CLASS}",
}
# What a flat config of transformers 4 says about the whole model; everything else there is the language model's.
WHOLE_MODEL_KEYS = (
    "architectures",
    "model_type",
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "tie_word_embeddings",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def upcycled_config(hf_config: Mapping[str, Any], expert_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` dict of the model with experts, always in the nested spelling of transformers 5.

    Args:
        hf_config: of a dense Qwen2-VL, flat or nested.
        expert_keys: `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `norm_topk_prob` and
            `mlp_only_layers`, as the text config shall hold them.
    Raises:
        ConfigError: not a dense Qwen2-VL that this package reads.
    """
    assert hf_config.get("model_type") == DENSE_MODEL, "experts are upcycled once"
    ties_embeddings = Qwen2VLArchitecture.from_huggingface(hf_config).text.ties_embeddings
    config = _nested(copy.deepcopy(dict(hf_config)))
    config["text_config"] |= {"model_type": TEXT_MODELS[MOE_MODEL], **expert_keys}
    return config | {
        "model_type": MOE_MODEL,
        "architectures": [MODEL_CLASS],
        "auto_map": AUTO_MAP,
        "tie_word_embeddings": ties_embeddings,
    }


def _nested(config: dict[str, Any]) -> dict[str, Any]:
    if "text_config" in config:
        return config
    whole = {key: value for key, value in config.items() if key in WHOLE_MODEL_KEYS}
    text = {key: value for key, value in config.items() if key not in WHOLE_MODEL_KEYS}
    rope = {"rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
    rope.pop("type", None)
    return whole | {"text_config": text | {"rope_parameters": rope | {"rope_type": "default"}}}
