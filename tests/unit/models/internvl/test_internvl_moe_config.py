"""What an upcycled InternVL's config says, in both layouts; transformers is asked whether it says so too."""

import copy

import pytest
import torch
from released_models import RELEASED, Released, native_config, original_config
from transformers import InternVLConfig, InternVLForConditionalGeneration

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.weight_map import weight_map
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycled_config

SETTINGS = UpcycleSettings(layers="every:3", num_experts=16, num_active=4, granularity=4)


def released(text_model: str) -> list[Released]:
    return [model for model in RELEASED if model.text["model_type"] == text_model]


@pytest.mark.parametrize("model", released("qwen3"), ids=lambda model: model.name)
def test_upcycled_models_have_the_parameters_that_transformers_gives_them(model: Released) -> None:
    native, original = (upcycled_config(layout(model), SETTINGS) for layout in (native_config, original_config))
    counts = parameter_counts(weight_map(native), SETTINGS.num_active)
    assert parameter_counts(weight_map(original), SETTINGS.num_active) == counts
    with torch.device("meta"):
        config = InternVLConfig(**copy.deepcopy(native), tie_word_embeddings=False)
        oracle = InternVLForConditionalGeneration(config)
    assert counts.total == oracle.num_parameters()
    assert original["llm_config"]["architectures"] == ["Qwen3MoeForCausalLM"]


@pytest.mark.parametrize("layout", [native_config, original_config])
def test_a_text_model_with_biased_projections_is_refused(layout) -> None:
    with pytest.raises(ConfigError, match=r"model_type: qwen2(?s:.*)InternVL3\.5"):
        upcycled_config(layout(released("qwen2")[0]), SETTINGS)
