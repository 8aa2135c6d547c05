"""Servers of small models in this process."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import soundfile
from starlette.testclient import TestClient

from launcher.serving.app import ServedModel, build_app
from launcher.serving.settings import ServerSettings

PATH = "/v1/audio/transcriptions"
ADDRESS = "http://127.0.0.1:8000"
STREAM = "ws://127.0.0.1:8000/v1/audio/stream"
RATE_HZ = 16_000


@contextmanager
def serving(models: Mapping[str, ServedModel], **limits: Any) -> Iterator[TestClient]:
    """A client of a server with these limits."""
    with TestClient(build_app(models, ServerSettings(**limits)), base_url=ADDRESS) as client:
        yield client


def wave_bytes(samples: np.ndarray, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format=kind)
    return file.getvalue()


def ask(client: TestClient, content: bytes, model: str = "noise", name: str = "talk.wav", **fields: Any) -> Any:
    """The answer to a recording."""
    return client.post(PATH, files={"file": (name, content)}, data={"model": model, **fields})


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
