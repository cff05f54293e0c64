"""The families by name."""

import pytest
from transformers import InternVLForConditionalGeneration

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.registry import family_of


@pytest.mark.parametrize("layout", ["internvl", "internvl_chat"])
def test_family_of_finds_internvl_in_both_layouts(layout: str) -> None:
    assert family_of({"model_type": layout}).processing is InternVLProcessing


def test_an_original_layout_has_no_class_without_its_own_code() -> None:
    assert family_of({"model_type": "internvl"}).huggingface_class() is InternVLForConditionalGeneration
    with pytest.raises(ConfigError, match="code is never run"):
        family_of({"model_type": "internvl_chat"}).huggingface_class()


def test_family_of_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"(?s)llava.*model_type: internvl or internvl_chat or qwen2_vl"):
        family_of({"model_type": "llava"})
