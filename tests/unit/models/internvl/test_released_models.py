"""Released models parse in both layouts and have as many parameters as transformers gives them."""

import copy

import pytest
import torch
from released_models import RELEASED, Released, native_config, original_config
from transformers import InternVLConfig, InternVLForConditionalGeneration

from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.models.internvl import InternVLArchitecture, chat_config
from megatron_moe_grpo.models.internvl.weight_map import weight_map
from megatron_moe_grpo.models.parameter_counts import parameter_counts


@pytest.mark.parametrize("model", RELEASED, ids=lambda model: model.name)
def test_parameters_of_released_models_equal_transformers(model: Released) -> None:
    native, original = native_config(model), original_config(model)
    total = parameter_counts(weight_map(native), None).total
    assert f"{total / 1e9:.2f}" == model.parameters
    assert parameter_counts(weight_map(original), None).total == total
    with torch.device("meta"):
        # Untied said aloud: a config without the key is tied to transformers 5 until it has seen the weights.
        config = InternVLConfig(**copy.deepcopy(native), tie_word_embeddings=False)
        oracle = InternVLForConditionalGeneration(config)
    assert oracle.num_parameters() == total


def test_internvl_3_5_1b_counts_to_the_parameter() -> None:
    """Its safetensors file holds 304,012,288 vision, 751,632,384 language and 5,253,120 projector weights."""
    rules = weight_map(native_config(next(model for model in RELEASED if model.name == "InternVL3_5-1B")))
    parts = {prefix: 0 for prefix in ("vision_tower.", "language_model.", "projector.")}
    for rule in rules:
        parts[next(prefix for prefix in parts if rule.target.startswith(prefix))] += rule.num_parameters
    assert list(parts.values()) == [304_012_288, 751_632_384, 5_253_120]


@pytest.mark.parametrize("model", RELEASED, ids=lambda model: model.name)
def test_both_layouts_of_a_released_model_are_one_architecture(model: Released) -> None:
    native, original = native_config(model), original_config(model)
    vocabulary = {"<IMG_CONTEXT>": native["image_token_id"], "<|im_end|>": 151645}
    converted = chat_config.native_config(original, vocabulary)
    assert InternVLArchitecture.from_huggingface(converted) == InternVLArchitecture.from_huggingface(native)
    assert converted["text_config"]["eos_token_id"] == 151645
    if model.name.endswith("1B"):
        assert Converter(weight_map(original)).megatron_shapes == Converter(weight_map(native)).megatron_shapes
