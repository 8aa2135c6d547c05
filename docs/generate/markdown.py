"""Pieces of Markdown pages."""

from collections.abc import Sequence


def cell(text: str) -> str:
    """Return a text as it may stand in a cell of a table: on one line, with its bars and tags taken literally."""
    plain = " ".join(text.split())
    return plain.replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """Return a text as code in a cell."""
    return f"`{text.replace('|', chr(92) + '|')}`"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, with an empty one behind it."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]
