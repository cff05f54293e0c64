"""The families by name."""

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.registry import family_of


def test_family_of_finds_internvl() -> None:
    assert family_of({"model_type": "internvl"}).processing is InternVLProcessing


def test_family_of_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"(?s)internvl_chat.*model_type: internvl"):
        family_of({"model_type": "internvl_chat"})
