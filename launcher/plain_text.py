"""What other people's files call things, made harmless for where it is shown.

Names, paths, keys, transcripts and reasons come from recipes, shards, models and run folders of others. On a terminal
an escape sequence in them could move the cursor, set the title or hide a line; in a picture or a page a control
character is no valid XML. Whatever Chorus prints passes `PrintableStream`; pages and pictures call `printable`.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Embeddings, overrides and isolates turn the order of what is read around, beyond the text that they stand in. Marks of
# direction and joiners of letters are part of Hebrew, Persian and Hindi writing, and stay.
BIDI_CONTROLS = r"\u202a-\u202e\u2066-\u2069"
# All but tab and line feed.
CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
# Lone surrogates cannot be encoded, and the last two are in no XML.
NOT_CHARACTERS = r"\ud800-\udfff\ufffe\uffff"
ACTING = re.compile(f"[{CONTROLS}{BIDI_CONTROLS}{NOT_CHARACTERS}]")

# Characters; more than any row of a table.
WIDEST_TABLE = 10_000


def printable(text: str) -> str:
    r"""The text with what acts instead of being read as `\u001b`, the escape that JSON uses too."""
    return ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def markdown_line(text: str) -> str:
    """The text on one line of a page of Markdown, or in a cell of a table there, without markup of its own."""
    one_line = " ".join(printable(text).split())
    # Underscores stay: within a word they are no markup, and names are full of them.
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", one_line)


def markdown_code(text: str) -> str:
    """The text as a piece of code in a line of Markdown, which no mark within ends."""
    one_line = " ".join(printable(text).split())
    return f"`{one_line.replace('`', chr(39))}`"


def table_cell(value: object) -> "Text":
    """A value for a table of rich's, which would take `[bold]` in a string as its own markup."""
    from rich.text import Text

    return Text(printable(str(value)))


class PrintableStream:
    """A text stream that writes what is printable of a text; `raw` is the stream itself, for our own sequences."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        return self.raw.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Let all that is printed pass a PrintableStream, on standard output and on standard error."""
    output = sys.stdout
    errors = sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # Both are None where whoever started this process had closed them.
        sys.stdout = cast(TextIO, PrintableStream(output or nowhere))
        sys.stderr = cast(TextIO, PrintableStream(errors or nowhere))
        try:
            yield
        finally:
            sys.stdout = output
            sys.stderr = errors


def raw_stream(stream: TextIO) -> TextIO:
    """The stream behind a PrintableStream, for sequences of our own that move the cursor or set a colour."""
    if isinstance(stream, PrintableStream):
        return stream.raw
    return stream


def make_console(**options: Any) -> "Console":
    """A console of rich's on standard output for tables whose cells are made by `table_cell`."""
    from rich.console import Console

    output = raw_stream(sys.stdout)
    if not output.isatty():
        # A program or a log reads it: rows are neither broken nor names cut to fit a width that nobody has.
        options = {"soft_wrap": True, "width": WIDEST_TABLE} | options
    return Console(file=output, **options)
