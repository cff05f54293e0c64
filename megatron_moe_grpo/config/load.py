"""Strict loading: YAML file, then `--set a.b=c`, then the typed tree.  Unknown keys name their nearest neighbour."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.errors import ConfigError

Tree = TypeVar("Tree", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = (), tree: type[Tree] = RunConfig) -> Tree:
    """The typed tree in `path` with `a.b=c` overrides applied.  Raises ConfigError for anything it does not know."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError("the configuration file does not exist", got=path, remedy="see examples/ for recipes")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML", got=str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold one mapping", got=type(values).__name__)
    return parse_config(apply_overrides(values, overrides), tree, source=str(path))


def parse_config(values: dict[str, Any], tree: type[Tree] = RunConfig, source: str = "configuration") -> Tree:
    """Validates plain values into `tree`."""
    try:
        return tree.model_validate(values)
    except ValidationError as error:
        raise _first_error(error, tree, source) from error


def apply_overrides(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=c` set; c is read as YAML, so `null`, `true` and `[a, b]` work."""
    merged = yaml.safe_load(yaml.safe_dump(values))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError("an override must read section.key=value", got=override)
        node = merged
        *sections, key = name.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{name} goes through {section}, which is not a section", got=override)
        try:
            node[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {name} is not YAML", got=text, remedy="quote it") from error
    return merged


def dump_config(config: BaseModel) -> str:
    """The resolved tree as YAML; `load_config` reads back an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _first_error(error: ValidationError, tree: type[BaseModel], source: str) -> ConfigError:
    """Pydantic's report, turned into our four-part message; unknown keys come first (they explain missing ones)."""
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")[0]
    place = tuple(str(part) for part in details["loc"])
    dotted = ".".join(place)
    if details["type"] == "extra_forbidden":
        known = _fields_at(tree, place[:-1])
        nearest = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(known)}"
        return ConfigError(f"unknown key {dotted!r} in {source}", got=place[-1], remedy=hint)
    if details["type"] == "missing":
        return ConfigError(f"{dotted!r} is missing in {source}", remedy=f"add it, or pass --set {dotted}=...")
    return ConfigError(f"{dotted!r} in {source} is not valid", got=repr(details["input"]), expected=details["msg"])


def _fields_at(tree: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    """Known keys of the section at `place`; a number in it is an index into a tuple of sections."""
    for section in place:
        if section.isdecimal():
            continue
        annotation = tree.model_fields[section].annotation
        sections = [part for part in (annotation, *get_args(annotation)) if _is_section(part)]
        if not sections:
            return []
        tree = sections[0]
    return list(tree.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
