"""Small random models, served in this process."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_models import real_speech, write_small_model
from small_servers import serving
from starlette.testclient import TestClient

from launcher.inference.finished_model import FinishedModel
from launcher.recipe.search import read_search
from launcher.serving.app import ServedModel


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory) -> Path:
    """An untrained recogniser with experts: what it writes is noise, but always the same."""
    return write_small_model(tmp_path_factory.mktemp("served") / "noise", "shared with experts")


@pytest.fixture(scope="package")
def models(model_folder, tmp_path_factory) -> dict[str, ServedModel]:
    """`noise` reads whole recordings, `chunks` reads them as they arrive."""
    folder = write_small_model(tmp_path_factory.mktemp("served") / "chunks", "streaming")
    chunked = read_search({"kind": "greedy", "chunk": {"frames": 4}}, "a test")
    return {
        "noise": ServedModel(name="noise", model=FinishedModel.load(model_folder), created=1),
        "chunks": ServedModel(name="chunks", model=FinishedModel.load(folder, chunked), created=1),
    }


@pytest.fixture(scope="package")
def client(models) -> Iterator[TestClient]:
    with serving(models) as client:
        yield client


@pytest.fixture(scope="package")
def speech() -> list[np.ndarray]:
    return real_speech(6)
