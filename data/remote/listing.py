"""The files of a remote store that match a pattern, looked up by a process of its own.

A listing has as many pages as the store likes to send, each as long as it likes, and fsspec's libraries hold all of it
before the first name is to be had. So they do it in a process with bounds of memory and time, which is ended when it
passes one: of a bucket with millions of names, or of a server that never comes to an end, no more is seen than that.

    python -m data.remote.listing PATTERN MAX_MEMORY_BYTES    # prints {"names": [...]} or {"error": "..."}
"""

import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import fsspec

from data.errors import DataError
from data.files import parse_json
from data.redaction import redact
from data.remote.stores import check_url

MAX_SECONDS = 120.0
MAX_MEMORY_BYTES = 4 * 2**30
MAX_NAMES = 100_000
MAX_ANSWER_CHARACTERS = 64 * 2**20
MAX_ERROR_CHARACTERS = 300
PACKAGES = Path(__file__).parents[2]


def list_matching(pattern: str) -> list[str]:
    """The URLs that match a URL with stars in it, sorted. DataError when they cannot be had within the bounds."""
    check_url(pattern)
    if pattern.startswith("memory://"):
        # Files of this process, which no other has.
        return _matching(pattern)
    command = [sys.executable, "-m", "data.remote.listing", pattern, str(MAX_MEMORY_BYTES)]
    # Without a folder of the user's in front, whose modules would be imported instead of ours.
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "PYTHONSAFEPATH": "1"}
    try:
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MAX_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"looking through it had not ended after {MAX_SECONDS:g} s") from None
    answer: object = None
    with suppress(ValueError):
        answer = parse_json(finished.stdout)
    if not isinstance(answer, dict):
        raise DataError(
            f"looking through it ended with code {finished.returncode}, within {MAX_MEMORY_BYTES // 2**20} MiB of "
            "memory, which may not be enough for what the store sends"
        )
    if "error" in answer:
        raise DataError(answer["error"])
    return answer["names"]


def _matching(pattern: str) -> list[str]:
    file_system, path = fsspec.url_to_fs(pattern)
    return sorted(file_system.unstrip_protocol(place) for place in file_system.glob(path))


def _answer(pattern: str) -> dict[str, object]:
    try:
        names = _matching(pattern)
    except MemoryError:
        return {"error": "the store sends more names than there is memory for"}
    # Of the store's library, some of which are no errors of the system.
    except Exception as error:
        return {"error": redact(str(error))[:MAX_ERROR_CHARACTERS] or type(error).__name__}
    num_characters = sum(map(len, names))
    if len(names) > MAX_NAMES or num_characters > MAX_ANSWER_CHARACTERS:
        return {"error": f"{len(names)} names match, and up to {MAX_NAMES} are taken"}
    return {"names": names}


if __name__ == "__main__":
    max_bytes = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    print(json.dumps(_answer(sys.argv[1])), flush=True)
    # Threads of a library may still wait for the store.
    os._exit(0)
