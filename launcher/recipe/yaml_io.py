"""YAML text and `key=value` overrides to the plain values that a recipe is validated from.

Values are read by the core schema of YAML 1.2, in which text is what looks like text: `yes` and `on` are words, `1:30`
is no number of seconds, `010` is ten, and `1e3` is a number.
"""

import difflib
import re
from typing import Any

import yaml

from launcher.bounded_yaml import BoundedLoader, load_yaml
from launcher.errors import ConfigError

# `<<: *ANCHOR`: its keys may be given again, and what is given wins.
MERGE_TAG = "tag:yaml.org,2002:merge"
# Of a value or an override that is quoted in a message.
MAX_QUOTED_CHARACTERS = 80


# What each tag of the core schema looks like, and the characters that such a value begins with.
CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (MERGE_TAG, r"<<", ["<"]),
)


class _StrictLoader(BoundedLoader):
    """Loader with the core schema of YAML 1.2, which refuses a key given twice, of which YAML would silently keep
    the last."""

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

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number, whose leading zeros mean nothing."""
        text = self.construct_scalar(node)
        if text.startswith(("0o", "0x")):
            return int(text, base=0)
        return int(text, base=10)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts into quotes also the texts that only YAML 1.2 takes for numbers, such as 1e3."""


# SafeLoader's own are those of YAML 1.1, for which `no` is false, 1:30 is 90 and 010 is 8.
_StrictLoader.yaml_implicit_resolvers = {}
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _StrictLoader.construct_mapping_once)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_core_int)
for _tag, _pattern, _first in CORE_SCHEMA:
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def dump_values(values: dict[str, Any]) -> str:
    """Return plain values as YAML that readers of 1.1 and of 1.2 understand alike."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def parse_value(text: str, source: str) -> Any:
    """Parse a YAML text; ConfigError, which begins with `source`, when it is none."""
    try:
        return _without_shared_values(load_yaml(text, _StrictLoader))
    # ValueError: a value that contradicts its tag, such as !!int x, or has thousands of digits; too many values.
    except (yaml.YAMLError, ValueError) as error:
        # YAML's messages run over several lines; ours are one paragraph.
        raise ConfigError(f"{source} is not readable as YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ConfigError(f"{source} is not readable as YAML: sections are nested too deep.") from None


def parse_recipe(text: str, source: str) -> dict[str, Any]:
    """Parse a recipe's text; ConfigError with line and column when it is not a YAML mapping."""
    values = parse_value(text, source)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {_describe(values)} where a recipe is a mapping with name, corpus, stages and batches."
        )
    return values


def _without_shared_values(values: Any) -> Any:
    """The same values, where an alias is a copy of its anchor: an override of the one must not change the other."""
    # copy.deepcopy would not do: it keeps what is shared shared.
    if isinstance(values, dict):
        return {key: _without_shared_values(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_shared_values(value) for value in values]
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place; the value is YAML, items of a list are addressed by name.

    What a whole item is set to is what a recipe that `extends` another may change it to: keys that replace its own, or
    null, which leaves it out.
    """
    dotted, equals, text = override.partition("=")
    if len(override) > MAX_QUOTED_CHARACTERS:
        override = override[:MAX_QUOTED_CHARACTERS] + "..."
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override!r} is not of the form key.key=value, such as stages.teacher.steps=30.")
    value = parse_value(text, f"The value of --set {override!r}")

    target: Any = values
    # The last key may be new: whether there is such a setting is for the schema to say.
    for depth, key in enumerate(keys[:-1]):
        path = ".".join(keys[:depth])
        target = _child(target, key, path, override)
    path = ".".join(keys[:-1])
    if isinstance(target, list):
        item = _child(target, keys[-1], path, override)
        if value is None:
            target.remove(item)
        elif isinstance(value, dict):
            item |= value
        else:
            raise ConfigError(
                f"--set {override!r} changes {dotted.strip()} to {_describe(value)}; give keys of it, such as "
                f"{dotted.strip()}.KEY=VALUE, or null to leave it out."
            )
    elif isinstance(target, dict):
        target[keys[-1]] = value
    else:
        raise ConfigError(f"--set {override!r}: {path} holds {_describe(target)}, which has no keys.")


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
            items[item_name(item, None)] = item
    if key not in items:
        raise ConfigError(f"--set {override!r}: {path} has no item named {key!r}{nearest(key, list(items))}")
    return items[key]


def item_name(item: Any, number: int | None) -> str:
    """Return by what an item of a list is addressed: its label, of which corpora of a mixture have one, else its name,
    else its number."""
    if not isinstance(item, dict):
        return str(number)
    return str(item.get("label", item.get("name", number)))


def nearest(word: str, words: list[str]) -> str:
    """Return the end of a sentence that proposes the nearest of some words, and lists them all."""
    if not words:
        return "; there is none."
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
