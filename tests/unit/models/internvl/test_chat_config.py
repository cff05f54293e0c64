"""The original layout's config as a native one, and what is refused."""

import copy
from typing import Any

import pytest
from released_models import RELEASED, original_config
from transformers import InternVLConfig

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl import InternVLArchitecture
from megatron_moe_grpo.models.internvl.chat_config import native_config, native_image_settings
from megatron_moe_grpo.models.internvl.weight_map import weight_map
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycled_config

VOCABULARY = {"<IMG_CONTEXT>": 151667, "<|im_end|>": 151645}
MODELS = {model.name: model for model in RELEASED}


def config_of(name: str = "InternVL3-1B", section: str | None = None, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(original_config(MODELS[name]))
    (config[section] if section else config).update(changes)
    return config


def test_native_config_is_one_that_transformers_reads_back_the_same() -> None:
    native = native_config(config_of(), VOCABULARY)
    read = InternVLConfig(**copy.deepcopy(native))
    assert (read.image_token_id, read.image_seq_length, read.tie_word_embeddings) == (151667, 256, False)
    assert (read.text_config.model_type, read.text_config.eos_token_id) == ("qwen2", 151645)
    assert read.text_config.rope_parameters["rope_type"] == "dynamic"
    vision = read.vision_config
    assert (vision.attention_bias, vision.use_qk_norm, tuple(vision.image_size)) == (True, False, (448, 448))
    assert not {"auto_map", "_name_or_path", "moe_config"} & native["text_config"].keys()


@pytest.mark.parametrize(
    ("outside", "inside", "is_tied"),
    [(None, None, False), (None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_from_huggingface_asks_the_language_model_where_the_model_says_nothing_of_tied_embeddings(
    outside: bool | None, inside: bool | None, is_tied: bool
) -> None:
    config = config_of()
    for section, value in ((config, outside), (config["llm_config"], inside)):
        section.pop("tie_word_embeddings", None)
        if value is not None:
            section["tie_word_embeddings"] = value
    assert InternVLArchitecture.from_huggingface(config).text.ties_embeddings == is_tied
    assert native_config(config)["tie_word_embeddings"] == is_tied


def test_native_config_leaves_its_argument_alone() -> None:
    config = config_of()
    before = copy.deepcopy(config)
    native_config(config, VOCABULARY)
    assert config == before


def test_image_tokens_follow_from_the_sizes() -> None:
    config = config_of(force_image_size=224, downsample_ratio=0.25)
    config["vision_config"]["image_size"] = 224
    architecture = InternVLArchitecture.from_huggingface(config)
    assert (architecture.image_seq_length, architecture.shuffle_factor, architecture.image_token_id) == (16, 4, None)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (None, {"ps_version": "v1"}, "ps_version: v1"),
        (None, {"select_layer": -4}, "select_layer: -4"),
        (None, {"template": "Hermes-2"}, "template: Hermes-2"),
        (None, {"pad2square": True}, "pad2square"),
        (None, {"force_image_size": 224}, "force_image_size: 224"),
        (None, {"use_llm_lora": 16}, "LoRA adapters"),
        (None, {"downsample_ratio": None}, "downsample_ratio: None"),
        ("vision_config", {"qkv_bias": None}, "qkv_bias: None"),
        ("vision_config", {"norm_type": "batch_norm"}, "norm_type: batch_norm"),
        ("vision_config", {"qk_normalization": True, "layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05"),
        ("vision_config", {"patch_size": 0}, "patch_size: 0"),
        (None, {"downsample_ratio": 1e300}, r"downsample_ratio: 1e\+300"),
        ("llm_config", {"model_type": "internlm2"}, "model_type: internlm2"),
        ("llm_config", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_from_huggingface_refuses_of_the_original_layout(
    section: str | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        InternVLArchitecture.from_huggingface(config_of(section=section, **changes))


def test_native_image_settings_take_the_tiling_from_the_model_and_the_colours_from_the_file() -> None:
    settings = native_image_settings(config_of(max_dynamic_patch=6), {"image_mean": [0.1] * 3, "image_std": [0.2] * 3})
    assert (settings["crop_to_patches"], settings["min_patches"], settings["max_patches"]) == (True, 1, 6)
    assert (settings["image_mean"], settings["image_std"]) == ([0.1] * 3, [0.2] * 3)
    built_in = native_image_settings(config_of(dynamic_image_size=False, use_thumbnail=False), {})
    assert (built_in["crop_to_patches"], built_in["image_mean"]) == (False, [0.485, 0.456, 0.406])


def test_native_image_settings_refuse_tiles_without_a_thumbnail() -> None:
    """transformers' processor always adds it."""
    with pytest.raises(ConfigError, match="use_thumbnail: False"):
        native_image_settings(config_of(use_thumbnail=False), {})


@pytest.mark.parametrize(("name", "total", "active"), [("InternVL3_5-1B", 2.9, 1.3), ("InternVL3-1B", 3.1, 1.3)])
def test_upcycled_config_of_the_original_layout_is_the_upcycled_native_one(
    name: str, total: float, active: float
) -> None:
    dense, settings = config_of(name), UpcycleSettings()
    upcycled = upcycled_config(dense, settings)
    assert {key for key in upcycled if upcycled[key] != dense[key]} == {"llm_config"}
    native = upcycled_config(native_config(dense, VOCABULARY), settings)
    assert native_config(upcycled, VOCABULARY) == native
    counts = parameter_counts(weight_map(upcycled), settings.num_active)
    assert (round(counts.total / 1e9, 1), round(counts.active / 1e9, 1)) == (total, active)
