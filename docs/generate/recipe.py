"""The page of a recipe's keys, from the schema that recipes are read with."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from docs.generate.markdown import cell, code, table
from launcher.recipe import Recipe

Schema: TypeAlias = dict[str, Any]

INTRODUCTION = """\
# The keys of a recipe

This page lists every key that a recipe may have, for whoever writes one: its type, its default, what it means. It is
written from the code by `make reference`. How recipes are put together is told in [the design](../design.md).

A key without a default must be given. A recipe with a key that is not here, or a value of another type or out of its
bounds, is refused before anything starts. `stages.*` stands for each stage of the list; `--set stages.NAME.KEY=VALUE`
reaches a stage by its name. `null` takes a value away.
"""

# Of the mappings in a mixture: their names in the schema begin with it.
MIXED = "Mixed"
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


@dataclass
class Section:
    """A mapping of a recipe: the dotted keys where it may stand, and its schema."""

    schema: Schema
    places: list[str] = field(default_factory=list)


def recipe_page() -> str:
    """Return the page, as Markdown."""
    root = Recipe.model_json_schema()
    definitions = root["$defs"]
    sections = _sections(root, definitions)
    headings = _headings(sections)

    lines = [INTRODUCTION, "## The recipe itself", ""]
    lines += _keys(root, headings, definitions)
    for name, section in sections.items():
        lines += [f"## {headings[name]}", ""]
        lines += [_plain(section.schema.get("description", "")), ""]
        others = []
        for place in section.places:
            other = code(_short(place))
            if other not in (headings[name], *others):
                others.append(other)
        if others:
            lines += [f"The same keys: {', '.join(others)}.", ""]
        lines += _keys(section.schema, headings, definitions)
    return "\n".join(lines).rstrip() + "\n"


def _sections(root: Schema, definitions: dict[str, Schema]) -> dict[str, Section]:
    """Return the mappings of a recipe by their names in the schema, those that stand higher first."""
    sections: dict[str, Section] = {}
    mixed: list[str] = []
    waiting = [("", root)]
    while waiting:
        place, schema = waiting.pop(0)
        for key, value in schema.get("properties", {}).items():
            inner = f"{place}.{key}" if place else key
            for name, where in _mappings(value, inner):
                if name.startswith(MIXED):
                    mixed.append(name)
                    continue
                if name in sections:
                    sections[name].places.append(where)
                    continue
                sections[name] = Section(definitions[name], [where])
                waiting.append((where, definitions[name]))
    if mixed:
        sections[mixed[0]] = _mixed_corpus(definitions, mixed[0])
    return sections


def _mixed_corpus(definitions: dict[str, Schema], name: str) -> Section:
    """Return what a corpus of a mixture has beside the keys of the same corpus alone; that is the same for all."""
    alone = definitions[name.removeprefix(MIXED)]["properties"]
    schema = definitions[name]
    own = {key: value for key, value in schema["properties"].items() if key not in alone}
    required = [key for key in schema.get("required", ()) if key in own]
    description = (
        "A corpus of a mixture. It has the keys of the corpus of that `name`, as `corpus` has them, and these."
    )
    return Section({"description": description, "properties": own, "required": required}, ["corpus.mix.*"])


def _mappings(value: Schema, place: str) -> Iterator[tuple[str, str]]:
    """Yield (name, place) of each mapping that a value may be."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], place
    discriminator = value.get("discriminator")
    if discriminator:
        # One of several, told apart by one of its keys.
        for choice, reference in discriminator["mapping"].items():
            yield reference.rpartition("/")[2], f"{place} ({discriminator['propertyName']}: {choice})"
    else:
        for choice in (*value.get("anyOf", ()), *value.get("oneOf", ())):
            yield from _mappings(choice, place)
    if "items" in value:
        yield from _mappings(value["items"], f"{place}.*")


def _headings(sections: dict[str, Section]) -> dict[str, str]:
    """Return a heading for each mapping, no two alike: its place, in the short form where that will do."""
    headings: dict[str, str] = {}
    for name, section in sections.items():
        heading = code(_short(section.places[0]))
        if heading in headings.values():
            heading = code(section.places[0])
        headings[name] = heading
    return headings


def _short(place: str) -> str:
    """Return a place without the choices above it: most stages have the same model."""
    return re.sub(r" \([^)]*\)\.", ".", place)


def _keys(schema: Schema, headings: dict[str, str], definitions: dict[str, Schema]) -> list[str]:
    required = schema.get("required", ())
    rows = []
    for key, value in schema.get("properties", {}).items():
        default = ""
        if key not in required:
            default = _default(value, definitions)
        meaning = cell(value.get("description", ""))
        links = _links(value, headings)
        if links:
            meaning = f"{meaning} ({links})".strip()
        rows.append((code(key), cell(_type(value)), default, meaning))
    if not rows:
        return ["It has no keys.", ""]
    return table(("key", "type", "default", "meaning"), rows)


def _links(value: Schema, headings: dict[str, str]) -> str:
    """Return links to the sections of the mappings that a value may be."""
    links = []
    for name, _ in _mappings(value, ""):
        # Of a mixture's corpora the first stands for all.
        if name in headings:
            links.append(f"[{headings[name]}](#{anchor(headings[name])})")
    # A corpus may be one of twenty: their sections follow each other.
    if len(links) > 6:
        return f"{links[0]} and those after it"
    return ", ".join(links)


def anchor(title: str) -> str:
    """Return the anchor that GitHub and the site give a heading."""
    kept = [character for character in title.lower() if character.isalnum() or character in " -_"]
    return "".join(kept).strip().replace(" ", "-")


def _default(value: Schema, definitions: dict[str, Schema]) -> str:
    if "default" not in value:
        # Of mappings that are there with their own defaults.
        return "its defaults"
    default = value["default"]
    if default is None:
        return "none"
    text = json.dumps(default, ensure_ascii=False)
    if len(text) > 60:
        return "its defaults"
    return code(text)


def _type(value: Schema) -> str:
    """Return the type of a value and its bounds, in words."""
    if "const" in value:
        return json.dumps(value["const"])
    if "enum" in value:
        return " or ".join(json.dumps(choice) for choice in value["enum"])
    if "$ref" in value or "discriminator" in value:
        return "mapping"
    choices = value.get("anyOf") or value.get("oneOf")
    if choices:
        words = []
        for choice in choices:
            word = _type(choice)
            if word not in words:
                words.append(word)
        return " or ".join(words)
    kind = value.get("type", "value")
    if kind == "array":
        return _list_type(value)
    if kind == "object":
        inner = value.get("additionalProperties")
        if isinstance(inner, dict):
            return f"mapping of names to {_type(inner)}"
        return "mapping"
    return f"{TYPES.get(kind, kind)}{_bounds(value)}"


def _list_type(value: Schema) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {', '.join(_type(item) for item in value['prefixItems'])}"
    return f"list of {_type(value.get('items', {}))}"


def _bounds(value: Schema) -> str:
    bounds = []
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in value:
            bounds.append(f"{sign} {_number(value[key])}")
    if bounds:
        return f", {', '.join(bounds)}"
    if value.get("format") == "path":
        return " (a path)"
    return ""


def _number(value: float) -> str:
    """Return a bound as one would write it: limits of integers as powers."""
    for power in (31, 32, 53, 62, 63, 64):
        if value + 1 == 2**power:
            return f"2^{power} - 1"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:g}"


def _plain(docstring: str) -> str:
    """Return a docstring as paragraphs, without the lines it was broken into."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]
    return "\n\n".join(paragraphs)
