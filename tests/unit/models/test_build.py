"""The Megatron models by name; that each of them is right is shown in tests/parity."""

import pytest

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.build import BUILDERS, build_model
from megatron_moe_grpo.models.registry import FAMILIES


def test_every_family_can_be_built() -> None:
    assert BUILDERS.keys() == FAMILIES.keys()


def test_build_model_refuses_an_unknown_family() -> None:
    with pytest.raises(ConfigError, match="not supported"):
        build_model({"model_type": "llava"}, ParallelConfig(), "fp32")
