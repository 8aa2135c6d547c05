"""A process of `chorus transcribe --jobs N`: reads settings, then recordings, as lines of JSON, and answers each.

It ends when its standard input does, so that none stays behind where the command was killed.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import DataError
from data.files import parse_json
from data.redaction import RedactingFormatter, redact
from launcher.devices import recognition_device
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.recording_sources import RecordingSource
from launcher.plain_text import printable_output
from launcher.recipe.search import read_search

SECONDS_BETWEEN_REPORTS = 0.2


def main() -> None:
    # What libraries print must not stand among the answers: they have standard output for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if logging.lastResort:
        logging.lastResort.setFormatter(RedactingFormatter())

    def answer(kind: str, **values: Any) -> None:
        answers.write(json.dumps({"kind": kind, **values}) + "\n")
        answers.flush()

    with printable_output():
        lines = iter(sys.stdin.buffer)
        settings = parse_json(next(lines))
        transcriber = None
        for line in lines:
            message = parse_json(line)
            source = RecordingSource(message["name"], PurePosixPath(message["output"]))
            try:
                transcriber = transcriber or _load(settings)
            except (ConfigError, CheckpointError, DataError) as error:
                answer("refused", error=type(error).__name__, reason=redact(str(error)))
                continue
            try:
                row = transcriber.transcribe_source(source, on_progress=_Reporter(answer))
            except ConfigError as error:
                answer("refused", error="ConfigError", reason=redact(str(error)))
            except DataError as error:
                answer("error", reason=redact(str(error)))
            else:
                answer("row", row=row)


class _Reporter:
    """Answers with progress, at a rate that a person can read."""

    def __init__(self, answer: Callable[..., None]):
        self._answer = answer
        self._last_s = 0.0

    def __call__(self, done_s: float, seconds: float) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s > SECONDS_BETWEEN_REPORTS:
            self._last_s = now_s
            self._answer("progress", done_s=done_s, seconds=seconds)


def _load(settings: dict[str, Any]) -> Any:
    from launcher.inference.transcriber import Transcriber

    search = read_search(settings["search"], "The search")
    device = recognition_device(settings["device"])
    return Transcriber.load(Path(settings["model"]), search, device, settings["cut"], settings["dtype"])


if __name__ == "__main__":
    main()
