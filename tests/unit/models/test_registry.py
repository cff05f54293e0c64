"""The families by name."""

import pytest
from transformers import InternVLForConditionalGeneration

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.registry import FAMILIES, family_of


@pytest.mark.parametrize("layout", ["internvl", "internvl_chat"])
def test_family_of_finds_internvl_in_both_layouts(layout: str) -> None:
    assert family_of({"model_type": layout}).processing is InternVLProcessing


def test_an_original_layout_has_no_class_without_its_own_code() -> None:
    assert family_of({"model_type": "internvl"}).huggingface_class() is InternVLForConditionalGeneration
    with pytest.raises(ConfigError, match="code is never run"):
        family_of({"model_type": "internvl_chat"}).huggingface_class()


@pytest.mark.parametrize("name", ["llava", None, ["internvl"], {}])
def test_family_of_lists_what_there_is(name: object) -> None:
    with pytest.raises(ConfigError, match=r"(?s)got.*model_type: internvl or internvl_chat or qwen2_vl"):
        family_of({"model_type": name})


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "phi4mm", None, ["internvl_chat"]])
def test_family_of_refuses_models_of_code_of_their_own(name: object) -> None:
    with pytest.raises(ConfigError, match=r"(?s)never imported.*got.*model_type: .*x\.X.*-HF"):
        family_of({"model_type": name, "auto_map": {"AutoModel": "x.X"}})


@pytest.mark.parametrize("name", ["internvl_chat", "qwen2_vl_moe"])
def test_family_of_accepts_code_that_is_not_needed(name: str) -> None:
    assert family_of({"model_type": name, "auto_map": {"AutoModel": "x.X"}}) is FAMILIES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_our_own_layout_carries_a_file_of_ours(name: str) -> None:
    modeling_file = FAMILIES[name].modeling_file
    assert (modeling_file is not None) == (name == "qwen2_vl_moe")
    assert modeling_file is None or modeling_file.is_file()
