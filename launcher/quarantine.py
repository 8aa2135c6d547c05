"""The utterances that a stage passed over, a line of JSON for each: split, key, shard, offset and reason.

Each process has a file of its own, which outlives restarts and names an utterance once, however often it is met.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import parse_json, read_lines
from data.redaction import redact
from launcher.run_folder import open_no_link

if TYPE_CHECKING:
    from data.shards.reader import UtteranceError

# Of each process; a lost store would fill the disk. Beyond it utterances are counted, and the log names some.
MAX_RECORDED = 10_000
MAX_LINE_BYTES = 2**16
MAX_REASON_CHARACTERS = 2000
TEXTS = ("split", "key", "shard", "reason")

logger = logging.getLogger(__name__)


class QuarantineLog:
    """Appends what one process passes over in one split to its file."""

    def __init__(self, file: Path, split: str):
        self.file = file
        self.split = split
        self._recorded: set[tuple[str, str]] = set()
        self._has_failed = False
        try:
            for record in read_quarantined(file):
                self._recorded.add((record["split"], record["key"]))
        except (OSError, ValueError) as failure:
            self._complain(failure)

    def add(self, error: UtteranceError) -> None:
        """Record an utterance that is not recorded yet. What the disk refuses is said once, and ends nothing."""
        if len(self._recorded) >= MAX_RECORDED or (self.split, error.key) in self._recorded:
            return
        self._recorded.add((self.split, error.key))
        record = {
            "split": self.split,
            "key": error.key,
            "shard": error.shard,
            "offset": error.offset,
            "reason": error.reason[:MAX_REASON_CHARACTERS],
        }
        line = redact(json.dumps(record, ensure_ascii=False))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open_no_link(self.file) as file:
                # A kill may have cut the last line short: what follows is a line of its own.
                file.write(f"\n{line}\n".encode(errors="backslashreplace"))
        except OSError as failure:
            self._complain(failure)

    def _complain(self, failure: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning("Quarantined utterances are not recorded in %s (%s).", self.file, failure)


def read_quarantined(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, `MAX_RECORDED` at most; none when it is not there. Lines that are none of ours are passed
    over. OSError or ValueError when it cannot be read."""
    num_records = 0
    try:
        for line in read_lines(file, MAX_LINE_BYTES):
            if num_records == MAX_RECORDED:
                return
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and _is_record(record):
                num_records += 1
                yield record
    except FileNotFoundError:
        return


def _is_record(record: dict[str, Any]) -> bool:
    for name in TEXTS:
        if not isinstance(record.get(name), str):
            return False
    return type(record.get("offset")) is int
