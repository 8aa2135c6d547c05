"""The process of a stage that failed first, and the end of its log."""

import os
from pathlib import Path
from typing import Any

from data.files import open_regular
from data.redaction import redact
from launcher.monitoring.line_tail import is_inside
from launcher.processes.worker_error import first_error
from launcher.run_folder import StageFolder

SHOWN_BYTES = 64 * 1024
MAX_TRACEBACK_CHARACTERS = 20_000


def describe_failure(folder: StageFolder, run_folder: Path, lost_rank: int | None) -> dict[str, Any]:
    """The error that came first in a stage's present attempt, if any, and the end of the log of its process.

    Without an error it is the log of `lost_rank`, the process that the launcher lost last, else that of rank 0.
    """
    error = None
    if folder.logs.is_dir() and is_inside(folder.logs, run_folder):
        error = first_error(folder)
    rank = lost_rank or 0
    shown: dict[str, Any] = {"stage": folder.name, "error": None, "lost": lost_rank is not None}
    if error is not None:
        rank = error.rank
        shown["error"] = {
            "rank": error.rank,
            "host": error.host,
            "time": error.time,
            "kind": error.kind,
            "message": redact(error.message[:MAX_TRACEBACK_CHARACTERS]),
            "frame": error.frame,
            "traceback": redact(error.traceback[-MAX_TRACEBACK_CHARACTERS:]),
        }
    log = folder.rank_log(rank)
    if not log.exists():
        log = folder.launcher_log
    shown["rank"] = rank
    shown["log"] = log.name
    shown["text"] = _end_of(log, run_folder)
    return shown


def _end_of(log: Path, run_folder: Path) -> str:
    if log.exists() and not is_inside(log, run_folder):
        return f"{log.name} is a link that leads out of the run folder, and is not followed."
    try:
        with open_regular(log) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SHOWN_BYTES))
            content = file.read(SHOWN_BYTES)
    except OSError as error:
        return f"{log.name} cannot be read: {error.strerror}."
    if size > SHOWN_BYTES:
        # Its first line was cut.
        content = content[content.find(b"\n") + 1 :]
    return redact(content.decode("utf-8", "replace"))
