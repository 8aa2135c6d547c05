"""The error that ended a worker, kept for whoever started it.

A worker that ends with an exception leaves `logs/error-RANK.json` in its stage folder. The supervisor shows the error
that came first: the others mostly tell of the loss of the process that had it.
"""

import json
import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data.files import read_json, replacing
from data.redaction import redact
from launcher.errors import exit_code
from launcher.run_folder import StageFolder

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("data", "launcher", "model")
# What a collective raises when a process at its other end is gone: by the class where torch has one, otherwise (gloo
# raises a plain RuntimeError) by the words.
LOST_PEER_KINDS = ("DistBackendError", "DistNetworkError", "DistStoreError")
LOST_PEER_WORDS = ("closed by peer", "reset by peer", "gloo/transport", "NCCL error")
# Messages of CUDA and DeepSpeed run to pages. The log has all of them.
LONGEST_MESSAGE = 500
# Of an error file: a traceback through every layer of a model has some hundred kilobytes.
MAX_ERROR_BYTES = 2**22


@dataclass(frozen=True)
class WorkerError:
    """One worker's exception. `time` is in seconds since the epoch; `frame` is the innermost one in our own code."""

    rank: int
    host: str
    pid: int
    time: float
    exit_code: int
    kind: str
    message: str
    frame: str
    traceback: str

    def is_lost_peer(self) -> bool:
        """Whether the worker only noticed that another one was gone."""
        if self.kind in LOST_PEER_KINDS:
            return True
        return self.kind == "RuntimeError" and any(words in self.message for words in LOST_PEER_WORDS)

    def describe(self, log: Path) -> str:
        """Return, in one paragraph, what went wrong where, and in which log the traceback is."""
        message = " ".join(self.message.split())
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}..."
        place = ""
        if self.frame:
            place = f", in {self.frame}"
        return f"Rank {self.rank} on {self.host} ended with {self.kind}: {message}{place}. The traceback is in {log}."


def record_error(stage: StageFolder, rank: int, error: Exception) -> None:
    """Write the error file of a rank, from inside the handler of its exception."""
    # Where our own code was last; a library's frames below it explain less.
    innermost_frame = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(REPOSITORY) and path.relative_to(REPOSITORY).parts[0] in PACKAGES:
            innermost_frame = f"{path.relative_to(REPOSITORY)}:{frame.lineno} ({frame.name})"

    record = WorkerError(
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        time=time.time(),
        exit_code=exit_code(error),
        kind=type(error).__name__,
        message=redact(str(error)),
        frame=innermost_frame,
        traceback=redact("".join(traceback.format_exception(error))),
    )
    with replacing(stage.error_file(rank), durable=False) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")


def first_error(stage: StageFolder) -> WorkerError | None:
    """Return the error that came first in an attempt, None when no worker left one.

    Errors that only tell of a lost peer come after all others: clocks of hosts differ, causes do not follow effects.
    """
    errors = []
    for path in stage.error_files():
        try:
            errors.append(TypeAdapter(WorkerError).validate_python(read_json(path, MAX_ERROR_BYTES)))
        # Of another program, or half of one: no word of a worker.
        except (OSError, ValueError):
            continue
    return min(errors, key=lambda error: (error.is_lost_peer(), error.time), default=None)
