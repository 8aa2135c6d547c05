"""How pages are filled: what comes from others is escaped, and what acts instead of being read is made visible."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launcher import formatting
from launcher.plain_text import printable


def page_environment(folder: Path) -> Environment:
    """The templates of a folder, and colours.css, which all pages share."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        # Names and texts come from runs and shards, and may hold markup.
        autoescape=True,
        finalize=_printable_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = formatting.duration
    environment.filters["percent"] = formatting.percent
    return environment


def _printable_value(value: object) -> object:
    """What a template shows of a value."""
    if isinstance(value, Markup):
        # It was markup before, and only loses control characters.
        return Markup(printable(value))  # noqa: S704
    if isinstance(value, str):
        return printable(value)
    return value
