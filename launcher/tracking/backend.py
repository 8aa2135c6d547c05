"""What a tracker records, and what a backend must do with it.

A backend writes to one place outside `metrics.jsonl`. Every method is called from one thread of its own
(`launcher/tracking/background_writer.py`), except `abandon`; each may wait or raise, which costs training nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class Alert:
    """Something that a person should look at."""

    title: str
    text: str
    level: Literal["WARN", "ERROR"] = "WARN"


@dataclass(frozen=True)
class Sound:
    """A recording as the bytes of a FLAC file."""

    flac: bytes
    sample_rate_hz: int


@dataclass(frozen=True)
class Table:
    """Rows of plain values and sounds, one value for each column."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Artifact:
    """An input or a product of a stage, known by its fingerprint; `content` must follow from that alone.

    Two runs that declare the same name, kind, fingerprint and content mean one and the same version of it. `note` is
    what may differ between them, such as where it lies.
    """

    name: str
    kind: str
    fingerprint: str
    content: dict[str, Any]
    note: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """One place that receives the records of a stage."""

    name: str

    def open(self, claim_exit: Callable[[], None]) -> str:
        """Connect; return in words how. Calls `claim_exit` after a library has set exit hooks of its own."""
        ...

    def log(self, row: dict[str, Any]) -> None:
        """Take one row: `step` and metrics, numbers or lists of numbers."""
        ...

    def summarize(self, values: dict[str, float]) -> None:
        """Take numbers that hold for the stage as a whole."""
        ...

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Take images by name, uint8 [height, width, 3]."""
        ...

    def alert(self, alert: Alert) -> None: ...

    def table(self, table: Table) -> None: ...

    def artifact(self, artifact: Artifact, used: bool) -> None:
        """Take an artifact that the stage used, or made."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...

    def release(self) -> None:
        """Free what the library holds, after `close` or after an error."""
        ...

    def abandon(self, deadline_s: float) -> None:
        """End what still runs for the thread that does not return, until a time of the monotonic clock."""
        ...

    def advice(self) -> str:
        """Say what to do about a connection that was ended; may be empty."""
        ...
