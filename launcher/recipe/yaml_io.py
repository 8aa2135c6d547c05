"""YAML text and `key=value` overrides to the plain values that a recipe is validated from."""

import difflib
from typing import Any

import yaml

from launcher.errors import ConfigError

# `<<: *ANCHOR`: its keys may be given again, and what is given wins.
MERGE_TAG = "tag:yaml.org,2002:merge"
# Of a value that is quoted in a message.
MAX_QUOTED_CHARACTERS = 40


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping_once(self, node: yaml.MappingNode) -> dict[Any, Any]:
        """Return a mapping; ConstructorError names the keys that it has twice."""
        keys = []
        for key_node, _ in node.value:
            if key_node.tag != MERGE_TAG:
                keys.append(self.construct_object(key_node, deep=True))
        doubled = {str(key) for key in keys if keys.count(key) > 1}
        if doubled:
            names = ", ".join(sorted(doubled))
            raise yaml.constructor.ConstructorError(None, None, f"the key {names} is given twice", node.start_mark)
        return self.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _StrictLoader.construct_mapping_once)


def parse_recipe(text: str, source: str) -> dict[str, Any]:
    """Parse a recipe's text; ConfigError with line and column when it is not a YAML mapping."""
    try:
        values = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        # YAML's messages run over several lines; ours are one paragraph.
        raise ConfigError(f"{source} is not readable as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {_describe(values)} where a recipe is a mapping with name, corpus, stages and batches."
        )
    return _without_shared_values(values)


def _without_shared_values(values: Any) -> Any:
    """The same values, where an alias is a copy of its anchor: an override of the one must not change the other."""
    # copy.deepcopy would not do: it keeps what is shared shared.
    if isinstance(values, dict):
        return {key: _without_shared_values(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_shared_values(value) for value in values]
    return values


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
    # The last key may be new: whether there is such a setting is for the schema to say.
    for depth, key in enumerate(keys[:-1]):
        path = ".".join(keys[:depth])
        target = _child(target, key, path, override)
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(keys[:-1])} holds {_describe(target)}, which has no keys.")
    target[keys[-1]] = value


def _child(parent: Any, key: str, path: str, override: str) -> Any:
    """What a key leads to in the values at `path`: a section, which is made where there is none, or a named item."""
    if isinstance(parent, dict):
        # A section that is missing or null has only defaults, and the override may give the first value.
        if parent.get(key) is None:
            parent[key] = {}
        return parent[key]

    if not isinstance(parent, list):
        raise ConfigError(f"--set {override!r}: {path} holds {_describe(parent)}, which has no key {key!r}.")
    items = {}
    for item in parent:
        if isinstance(item, dict):
            items[str(item.get("name"))] = item
    if key not in items:
        raise ConfigError(f"--set {override!r}: {path} has no item named {key!r}{nearest(key, list(items))}")
    return items[key]


def nearest(word: str, words: list[str]) -> str:
    """Return the end of a sentence that proposes the nearest of some words, and lists them all."""
    close = difflib.get_close_matches(word, words, n=1)
    proposal = "."
    if close:
        proposal = f"; did you mean {close[0]!r}?"
    return f"{proposal} There are: {', '.join(words)}."


def _describe(value: Any) -> str:
    """A plain value with its kind in words."""
    if value is None:
        return "nothing"
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a truth value",
    }
    kind = kinds.get(type(value), type(value).__name__)
    quoted = str(value)[:MAX_QUOTED_CHARACTERS]
    return f"{kind} ({quoted!r})"
