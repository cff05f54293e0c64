"""Every choice of upcycling is checked before a weight is read."""

from typing import Any

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_active": 9}, "between one and all"),
        ({"num_active": 0}, "between one and all"),
        ({"drop_fraction": 1.5}, "out of range"),
        ({"noise_scale": -1.0}, "out of range"),
        ({"expert_init": "zeros"}, "Unknown expert_init(?s:.*)noise, copy, drop"),
        ({"router_init": "zeros"}, "Unknown router_init"),
        ({"granularity": 3}, "as many experts as every other(?s:.*)granularity 3, N = 8"),
        ({"granularity": 0}, "as many experts as every other"),
        ({"granularity": 4}, "whole copies(?s:.*)granularity 4, K = 2(?s:.*)random"),
        ({"layers": "first"}, "cannot be read"),
        ({"layers": "every:0"}, "cannot be read"),
        ({"layers": "5-3"}, "cannot be read"),
        ({"layers": "1,,2"}, "cannot be read"),
        ({"layers": ""}, "cannot be read"),
    ],
)
def test_upcycle_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UpcycleSettings(**values)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("every:1", (0, 1, 2, 3, 4, 5)),
        ("every:2", (1, 3, 5)),
        ("every:4", (3,)),
        ("2", (2,)),
        ("4,0-2,1", (0, 1, 2, 4)),
    ],
)
def test_chosen_layers(layers: str, expected: tuple[int, ...]) -> None:
    assert UpcycleSettings(layers=layers).chosen_layers(6) == expected


@pytest.mark.parametrize("layers", ["6", "0-6", "every:7"])
def test_chosen_layers_refuses_what_the_model_does_not_have(layers: str) -> None:
    with pytest.raises(ConfigError, match="do not fit the model(?s:.*)from 0 to 5"):
        UpcycleSettings(layers=layers).chosen_layers(6)


def test_down_scale_by_hand() -> None:
    assert UpcycleSettings().down_scale == 4.0
    assert UpcycleSettings(renormalise=True).down_scale == 1.0
    assert UpcycleSettings(num_experts=16, num_active=4, granularity=2).down_scale == 8.0
    assert UpcycleSettings(num_experts=16, num_active=4, granularity=2, renormalise=True).down_scale == 2.0
