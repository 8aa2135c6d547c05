"""YAML of which neither the text nor its aliases can make more than a recipe can be.

Nine lines whose anchors each name the one before ten times are a gigabyte when they are written out, which a reader
does sooner or later. The tree is counted as if it were written out, before anything is built from it. What is built are
mappings, lists, texts, numbers, truth values and null: tags of other kinds of values are refused.
"""

from typing import Any

import yaml

# A ladder of twenty trainings with every default written out has 100,000 characters and 10,000 values.
MAX_CHARACTERS = 2**20
MAX_VALUES = 50_000
MAX_DIGITS = 1000
# Of YAML 1.1; a date is one without a tag too. Not sets, pairs and bytes (!!set, !!omap, !!pairs, !!binary): what looks
# through a recipe for what may not stand in it knows lists and texts, and the schema would take a set for a list.
TAG_PREFIX = "tag:yaml.org,2002:"
PLAIN_TAGS = ("map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value")


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that gives up as soon as it has seen more values than are read."""

    num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.num_values += 1
        _check_number(self.num_values)
        return super().compose_node(parent, index)


def load_yaml(text: str, loader_class: type[BoundedLoader] = BoundedLoader) -> Any:
    """The values of a YAML text. YAMLError when it is none; ValueError when it is too large, also by its aliases, or
    has a value that contradicts its tag; RecursionError when it is nested too deep."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, and a recipe has at most {MAX_CHARACTERS}")
    loader = loader_class(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_number(_count_values(root, {}))
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_number(num_values: int) -> None:
    if num_values > MAX_VALUES:
        raise ValueError(f"with its aliases written out it has more than {MAX_VALUES} values")


def _check_scalar(node: yaml.ScalarNode) -> None:
    """ValueError for what an escape of YAML can write and no file in UTF-8, or no path, can hold; and for long numbers.

    Python reads a number of thousands of digits in hexadecimal, and cannot show it in a message.
    """
    text = node.value
    if len(text) > MAX_DIGITS and node.tag == "tag:yaml.org,2002:int":
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits, more than {MAX_DIGITS}")
    if "\0" in text:
        raise ValueError(f"the text {text[:40]!r} holds a character of value zero")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text {text[:40]!r} holds half of a character, {text[error.start]!r}") from None


def _count_values(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """The nodes of a tree, those behind an alias as often as it stands; `counts` are those of the nodes seen, by id."""
    if id(node) in counts:
        count = counts[id(node)]
        # Seen, and not counted yet: it is this node's own parent.
        if count is None:
            raise ValueError("an alias stands within its own anchor")
        return count
    counts[id(node)] = None
    if node.tag.removeprefix(TAG_PREFIX) not in PLAIN_TAGS:
        raise ValueError(f"it has the tag {node.tag[:80]!r}, and values have none; write lists, mappings and texts")
    count = 1
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            count += _count_values(item, counts)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            count += _count_values(key, counts) + _count_values(value, counts)
    counts[id(node)] = count
    return count
