"""YAML text and `key=value` overrides to the plain values that a recipe is validated from."""

import difflib
from typing import Any

import yaml

from launcher.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    merge = "tag:yaml.org,2002:merge"  # `<<: *ANCHOR`, whose keys may be given anew
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
    doubled = {str(key) for key in keys if keys.count(key) > 1}
    if doubled:
        raise yaml.constructor.ConstructorError(
            None, None, f"the key {', '.join(sorted(doubled))} is given twice", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_recipe(text: str, source: str) -> dict[str, Any]:
    """Parse a recipe's text; ConfigError with line and column when it is not a YAML mapping."""
    try:
        values = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not readable as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {_kind(values)} where a recipe is a mapping with name, corpus, stages and batches."
        )
    return _unshared(values)


def _unshared(values: Any) -> Any:
    """The same values, where an alias is a copy of its anchor: an override of the one must not change the other."""
    if isinstance(values, dict):
        return {key: _unshared(value) for key, value in values.items()}
    return [_unshared(value) for value in values] if isinstance(values, list) else values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place; the value is YAML, items of a list are addressed by name."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override!r} is not of the form key.key=value, such as stages.teacher.steps=30.")
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}.") from None
    target: Any = values
    for depth, key in enumerate(keys[:-1]):
        target = _descend(target, key, ".".join(keys[:depth]), override)
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(keys[:-1])} holds {_kind(target)}, which has no keys.")
    target[keys[-1]] = value


def _descend(target: Any, key: str, path: str, override: str) -> Any:
    if isinstance(target, dict):
        if target.get(key) is None:
            target[key] = {}
        return target[key]
    if isinstance(target, list):
        items = {str(item.get("name")): item for item in target if isinstance(item, dict)}
        if key in items:
            return items[key]
        raise ConfigError(f"--set {override!r}: {path} has no item named {key!r}{nearest(key, list(items))}")
    raise ConfigError(f"--set {override!r}: {path} holds {_kind(target)}, which has no key {key!r}.")


def nearest(word: str, words: list[str]) -> str:
    """Return the end of a sentence that proposes the nearest of some words, and lists them all."""
    close = difflib.get_close_matches(word, words, n=1)
    proposal = f"; did you mean {close[0]!r}?" if close else "."
    return f"{proposal} There are: {', '.join(words)}."


def _kind(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a truth value",
    }
    return "nothing" if value is None else f"{names.get(type(value), type(value).__name__)} ({str(value)[:40]!r})"
