"""The tree: strict, frozen, documented, and the paper's values as defaults."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from megatron_moe_grpo.config.schema import LossConfig, OptimizerConfig, RolloutConfig, RoutingConfig, RunConfig

SMALLEST = {
    "name": "first",
    "method": "moe_grpo",
    "model": {"checkpoint": "checkpoint"},
    "data": {"train": "train.jsonl"},
    "training": {"steps": 1},
}


def sections(tree: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield tree
    for field in tree.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_run_config_needs_only_what_has_no_sensible_default() -> None:
    assert RunConfig.model_validate(SMALLEST).training.steps == 1
    for name in SMALLEST:
        with pytest.raises(ValidationError, match=name):
            RunConfig.model_validate({key: value for key, value in SMALLEST.items() if key != name})


def test_defaults_are_the_papers_values() -> None:
    """MoE-GRPO section 4.1 (METHOD 7): G = 8, P = 25 %, lr 1e-6 cosine, greedy tokens, balancing 0.01, both losses."""
    assert (RolloutConfig().group_size, RolloutConfig().token_temperature) == (8, 0.0)
    assert (RoutingConfig().guidance, RoutingConfig().guidance_fraction) == ("modality", 0.25)
    assert (OptimizerConfig().learning_rate, OptimizerConfig().schedule) == (1e-6, "cosine")
    losses = LossConfig()
    assert (losses.token_coefficient, losses.gate_coefficient, losses.load_balancing_coefficient) == (1.0, 1.0, 0.01)


def test_every_section_is_frozen_and_forbids_unknown_keys() -> None:
    for section in sections(RunConfig):
        assert (section.model_config["frozen"], section.model_config["extra"]) == (True, "forbid"), section


def test_run_config_cannot_be_changed_after_loading() -> None:
    config = RunConfig.model_validate(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        config.training.steps = 2


def test_every_setting_has_its_docstring() -> None:
    # Sections explain themselves in their class docstring; `name` and `method` carry one each.
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections(RunConfig)
        for name, field in section.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert undocumented == []
    assert [section.__name__ for section in sections(RunConfig) if not section.__doc__] == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "steps", 0),
        ("routing", "guidance_fraction", 1.0),
        ("routing", "guidance", "modal"),
        ("rollout", "group_size", 0),
        ("losses", "clip_epsilon", 0.0),
        ("losses", "clip_epsilon", 1.0),
        ("optimizer", "learning_rate", -1e-6),
        ("parallel", "expert", 0),
    ],
)
def test_run_config_refuses_values_out_of_range(section: str, key: str, value: object) -> None:
    values = {**SMALLEST, section: {**SMALLEST.get(section, {}), key: value}}
    with pytest.raises(ValidationError, match=rf"{section}\.{key}"):
        RunConfig.model_validate(values)
