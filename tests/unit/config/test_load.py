"""Loading: what is accepted comes back equal, what is not is named with its nearest neighbour."""

from pathlib import Path

import pytest
import yaml

from megatron_moe_grpo.config import RunConfig, dump_config, load_config, parse_config
from megatron_moe_grpo.config.load import apply_overrides
from megatron_moe_grpo.errors import ConfigError

VALUES = {
    "name": "first",
    "method": "moe_grpo",
    "model": {"checkpoint": "checkpoint", "freeze": ["vision_tower"]},
    "data": {"train": "train.jsonl"},
    "training": {"steps": 300},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return path


def test_load_config_reads_values_and_fills_defaults(recipe: Path) -> None:
    config = load_config(recipe)
    assert (config.training.steps, config.model.freeze, config.rollout.group_size) == (300, ("vision_tower",), 8)


def test_load_config_applies_overrides_in_order(recipe: Path) -> None:
    config = load_config(recipe, ["training.steps=5", "parallel.expert=2", "training.steps=7"])
    assert (config.training.steps, config.parallel.expert) == (7, 2)


def test_dump_config_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe, ["optimizer.learning_rate=3e-4", "data.evaluation=null", "name=größer"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(resolved) == config
    assert config.optimizer.learning_rate == 3e-4


def test_apply_overrides_reads_yaml_and_leaves_its_input_alone() -> None:
    before = {"a": {"b": 1}}
    after = apply_overrides(before, ["a.b=null", "a.c=[x, y]", "d.e=true", "f=a=b", "g="])
    assert after == {"a": {"b": None, "c": ["x", "y"]}, "d": {"e": True}, "f": "a=b", "g": None}
    assert before == {"a": {"b": 1}}


@pytest.mark.parametrize("override", ["training.steps", "=5", ""])
def test_apply_overrides_refuses_what_is_not_an_assignment(override: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        apply_overrides({}, [override])


def test_apply_overrides_refuses_a_path_through_a_value() -> None:
    with pytest.raises(ConfigError, match="goes through name, which is not a section"):
        apply_overrides({"name": "first"}, ["name.first=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.group_sise=4", "unknown key 'rollout.group_sise' in .*did you mean 'group_size'"),
        ("rolout.group_size=4", "unknown key 'rolout' in .*did you mean 'rollout'"),
        ("losses.zzzzzzz=1", "known keys here: rl_method, token_coefficient"),
        ("training.steps=many", r"'training\.steps' in .* is not valid.*got: .*'many'.*expected: .*integer"),
        ("training.steps=0", r"'training\.steps' in .* is not valid.*greater than 0"),
        ("method=ppo", "'method' in .* is not valid.*'moe_grpo' or 'grpo'"),
        ("rollout=8", "'rollout' in .* is not valid"),
    ],
)
def test_load_config_names_the_key_and_the_remedy(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(recipe, [override])


def test_parse_config_names_a_missing_key() -> None:
    values = {key: value for key, value in VALUES.items() if key != "training"}
    with pytest.raises(ConfigError, match=r"(?s)'training' is missing in recipe\.yaml.*--set training="):
        parse_config(values, source="recipe.yaml")


def test_parse_config_reports_an_unknown_key_before_a_missing_one() -> None:
    values = {**VALUES, "training": {"step": 300}}
    with pytest.raises(ConfigError, match=r"(?s)unknown key 'training\.step' .*did you mean 'steps'"):
        parse_config(values)


def test_load_config_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist(?s:.*)absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is not YAML"), ("- a", "one mapping"), ("", "one mapping")])
def test_load_config_refuses_what_is_not_one_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_load_config_runs_no_code_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


def test_parse_config_takes_another_tree() -> None:
    rollout = RunConfig.model_fields["rollout"].annotation
    assert parse_config({"group_size": 2}, rollout).group_size == 2
