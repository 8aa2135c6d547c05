"""A store that speaks S3 on loopback, with faults on command, and run folders written by hand to keep there."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import faulty_s3
import fsspec
import pytest

from data.remote.settings import CACHE_VARIABLE
from launcher.recipe import CheckpointConfig
from launcher.remote_run.inventory import Inventory
from launcher.remote_run.mirror import Mirror
from launcher.remote_run.object_store import ObjectStore
from launcher.run_folder import RunFolder, StageFolder, write_json

SECRET = "not-for-logs-7f3a"
STAGE = "student"
CONFIG = CheckpointConfig(keep_last=2, keep_best=1)


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("moto", reason="moto, of the extra test, serves S3 on loopback")
    pytest.importorskip("s3fs", reason="s3fs, of the extra s3, speaks to it")
    with faulty_s3.serving() as running:
        # Instances of fsspec are kept with the server and the credentials that they found.
        clear_clients()
        yield running
        clear_clients()


def clear_clients() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """The URL of a bucket of its own. Where it is, and who asks, the environment says alone."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # A failure is told at once; how often botocore would ask again is not ours.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    server.clear()
    server.forget_requests()
    # One for all tests, which ask the same server as the same user.
    files = fsspec.filesystem("s3")
    # A bucket's name has letters in small alone.
    name = f"runs-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:10]}"
    files.mkdir(name)
    yield f"s3://{name}"
    server.clear()


@pytest.fixture(autouse=True)
def no_flushes(monkeypatch):
    """What survives a power cut is not looked at here, and a busy disk takes its time for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def memory():
    """The URL of a store in this process, which is as fast as a dictionary."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/run"
    files.store.clear()


def write_state(run: RunFolder, **statuses: str) -> None:
    stages = {}
    for name, status in statuses.items():
        stages[name] = {"kind": "pretrain", "status": status, "fingerprint": "f", "settings": {}, "inputs": {}}
        if status == "done":
            stages[name]["output"] = "o"
    write_json(run.state_file, {"format": 1, "recipe": "small", "stages": stages})


def write_checkpoint(stage: StageFolder, step: int, cer: float | None = None, parts: int = 2, size: int = 64) -> None:
    """A checkpoint as the store sees it: parts, and a manifest with their digests."""
    folder = stage.checkpoint(step)
    folder.mkdir(parents=True)
    files = []
    for rank in range(parts):
        name = f"rank-{rank:05d}.safetensors"
        content = bytes([step % 251, rank]) * (size // 2)
        (folder / name).write_bytes(content)
        files.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    write_json(folder / "manifest.json", {"format": 1, "step": step, "validation_cer": cer, "files": files})
    stage.latest_file.write_text(f"{folder.name}\n")
    with stage.metrics_file.open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")


def retire(stage: StageFolder, step: int) -> None:
    shutil.rmtree(stage.checkpoint(step))


def new_run(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.recipe_file.write_text("name: small\n")
    run.stage(STAGE).logs.mkdir(parents=True)
    write_state(run, student="running")
    return run


def recipe_of(*names: str, average=None, config: CheckpointConfig = CONFIG):
    """As much of a recipe as is read of it here."""
    stages = [SimpleNamespace(name=name, average=average, checkpoint=config) for name in names]
    return SimpleNamespace(training_stages=lambda: stages, cluster=SimpleNamespace(stop_deadline_s=5.0))


def make_mirror(run: RunFolder, store: ObjectStore, inventory: Inventory | None = None, may_write=lambda: True):
    return Mirror(run, store, inventory or Inventory(), {STAGE: CONFIG}, may_write)


def upload_everything(mirror: Mirror) -> None:
    while not mirror.look(everything=True):
        pass


def read_inventory(store: ObjectStore) -> Inventory:
    content, version = store.read_version("inventory.json")
    assert content is not None
    return Inventory.parse(content, version, store.url)
