"""What a process of a `WorkerPool` does: reads settings, then tasks, as lines of JSON, and answers each.

It ends when its standard input does, so that none stays behind where the command was killed.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from data.errors import DataError
from data.files import parse_json
from data.redaction import RedactingFormatter, redact
from launcher.errors import CheckpointError, ConfigError
from launcher.plain_text import printable_output

# How much of a task is done, and how much there is.
Report: TypeAlias = Callable[[float, float], None]
# Does a task, given as plain values, and gives its result as such.
Handle: TypeAlias = Callable[[dict[str, Any], Report], dict[str, Any]]
SECONDS_BETWEEN_REPORTS = 0.2


def serve(load: Callable[[dict[str, Any]], Handle]) -> None:
    """Do tasks with what `load` makes of the settings, until there are no more."""
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
        handle = None
        for line in lines:
            task = parse_json(line)
            try:
                handle = handle or load(settings)
            except (ConfigError, CheckpointError, DataError) as error:
                answer("refused", error=type(error).__name__, reason=redact(str(error)))
                continue
            try:
                result = handle(task, _Reporter(answer))
            except ConfigError as error:
                answer("refused", error="ConfigError", reason=redact(str(error)))
            except DataError as error:
                answer("error", reason=redact(str(error)))
            else:
                answer("result", result=result)


class _Reporter:
    """Answers with progress, at a rate that a person can read."""

    def __init__(self, answer: Callable[..., None]):
        self._answer = answer
        self._last_s = 0.0

    def __call__(self, done: float, total: float) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s > SECONDS_BETWEEN_REPORTS:
            self._last_s = now_s
            self._answer("progress", done=done, total=total)
