"""What an upcycled InternVL's config says, in both layouts; transformers is asked whether it says so too."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from released_models import RELEASED, Released, native_config, original_config
from transformers import InternVLConfig, InternVLForConditionalGeneration

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl import InternVLArchitecture
from megatron_moe_grpo.models.internvl.chat_config import text_section
from megatron_moe_grpo.models.internvl.weight_map import weight_map
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycled_config

SETTINGS = UpcycleSettings(layers="every:3", num_experts=16, num_active=4, granularity=4)
MODELS = {model.name: model for model in RELEASED}

DENSE = [model for model in RELEASED if model.text["model_type"] != "qwen3_moe"]
MODEL_CLASSES = {"qwen2": "Qwen2MoeForCausalLM", "qwen3": "Qwen3MoeForCausalLM"}


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
def test_upcycled_models_have_the_parameters_that_transformers_gives_them(model: Released) -> None:
    native, original = (upcycled_config(layout(model), SETTINGS) for layout in (native_config, original_config))
    counts = parameter_counts(weight_map(native), SETTINGS.num_active)
    assert parameter_counts(weight_map(original), SETTINGS.num_active) == counts
    with torch.device("meta"):
        config = InternVLConfig(**copy.deepcopy(native), tie_word_embeddings=False)
        oracle = InternVLForConditionalGeneration(config)
    assert counts.total == oracle.num_parameters()
    assert original["llm_config"]["architectures"] == [MODEL_CLASSES[model.text["model_type"]]]


@pytest.mark.parametrize("layout", [native_config, original_config])
def test_an_upcycled_qwen2_keeps_its_biases_and_has_a_shared_expert_of_no_width(
    layout: Callable[[Released], dict[str, Any]],
) -> None:
    dense = layout(MODELS["InternVL3-1B"])
    section = text_section(dense)
    dense[section] = dense[section] | {"head_dim": None}
    config = upcycled_config(dense, SETTINGS)
    text = config[section]
    assert (text["model_type"], text["shared_expert_intermediate_size"], text["qkv_bias"]) == ("qwen2_moe", 0, True)
    # transformers' Qwen2-MoE, unlike its Qwen2, computes with the null.
    assert "head_dim" not in text
    sizes, dense_sizes = (InternVLArchitecture.from_huggingface(values).text for values in (config, dense))
    # By hand: every third of 24 layers, experts of a quarter of 4864.
    assert (sizes.moe_layers, sizes.expert_ffn_size) == ((2, 5, 8, 11, 14, 17, 20, 23), 1216)
    assert (sizes.has_qkv_bias, sizes.has_qk_norm, sizes.head_dim) == (True, False, 896 // 14)
    expert_fields = {"num_experts", "num_active", "expert_ffn_size", "dense_layers"}
    kept, before = (
        {name: value for name, value in asdict(one).items() if name not in expert_fields}
        for one in (sizes, dense_sizes)
    )
    assert kept == before


@pytest.mark.parametrize("width", [1408, None, False, "0"])
def test_a_shared_expert_is_refused(width: object) -> None:
    config = upcycled_config(native_config(MODELS["InternVL3-1B"]), SETTINGS)
    config["text_config"]["shared_expert_intermediate_size"] = width
    with pytest.raises(ConfigError, match=f"(?s)has a shared expert.*shared_expert_intermediate_size: {width!r}"):
        InternVLArchitecture.from_huggingface(config)


def test_a_qwen2_moe_without_biases_is_refused() -> None:
    config = upcycled_config(native_config(MODELS["InternVL3-1B"]), SETTINGS)
    config["text_config"]["qkv_bias"] = False
    with pytest.raises(ConfigError, match="qkv_bias: False"):
        InternVLArchitecture.from_huggingface(config)
