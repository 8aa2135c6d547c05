"""Weights & Biases: what a recipe or a run folder of others names there, and what would be sent with its records."""

import json
import os
import struct

import pytest
from trackers import _no_settings_from_outside, open_tracker  # noqa: F401  a fixture for all tests here
from wandb.proto.wandb_internal_pb2 import Record

from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.recipe import validate
from launcher.run_folder import RunFolder, write_json
from launcher.tracking import Artifact, Table, TrackingConfig, WandbConfig
from launcher.tracking.record_files import FILE_HEADER_BYTES, WHOLE, file_elsewhere
from launcher.tracking.wandb_backend import _read_id

RECORD_OF_STAGE = {"kind": "", "status": "running", "fingerprint": "", "settings": {}, "inputs": {}}
ODD_NAMES = [
    "",
    "a/b",
    "../x",
    "a\\b",
    "a#b",
    "a?b",
    "a%2e",
    "a:b",
    "a\nb",
    "a\x1b[31mb",
    " a",
    "a" * 129,
    "a'b",
    "<b>",
]


@pytest.mark.parametrize("key", ["project", "entity"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_weights_and_biases_has_not_is_refused_before_anything_starts(key, name):
    with pytest.raises(ConfigError, match=rf"wandb\.{key}") as refusal:
        validate(TrackingConfig, {"wandb": {key: name}}, "The recipe")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("tags", [[""], ["a" * 65], ["a\nb"], ["\x1b[31m"], ["a"] * 101, "a", [1]])
def test_tags_that_weights_and_biases_does_not_take_are_refused(tags):
    with pytest.raises(ConfigError, match=r"wandb\.tags"):
        validate(TrackingConfig, {"wandb": {"tags": tags}}, "The recipe")


@pytest.mark.parametrize("name", ["chorus", "my-team", "Проект 7", "a.b_c", "team (speech)"])
def test_usual_names_of_weights_and_biases_are_taken(name):
    wandb = validate(TrackingConfig, {"wandb": {"project": name, "entity": name, "tags": [name, "a/b"]}}, "").wandb
    assert (wandb.project, wandb.entity) == (name, name)


HOSTILE_IDS = ["", "../x", "a/b", "a b", "a\n", "é", "a" * 65, 3, None, ["a"], {"a": 1}, "a:b", "a%b", "-x"]


@pytest.mark.parametrize("wandb_id", HOSTILE_IDS)
def test_an_id_of_a_received_run_folder_that_is_none_is_not_used(tmp_path, wandb_id):
    write_json(tmp_path / "wandb.json", {"id": wandb_id})
    assert _read_id(tmp_path / "wandb.json") is None


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 10**5, b"1" * 5000, b"", b"\xff"])
def test_a_file_of_an_id_that_is_none_is_not_used(tmp_path, content):
    (tmp_path / "wandb.json").write_bytes(content)
    assert _read_id(tmp_path / "wandb.json") is None


# --- what is sent along -------------------------------------------------------------------------------


def write_record(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    content = bytes(FILE_HEADER_BYTES)
    for record in records:
        body = record.SerializeToString()
        content += struct.pack("<IHB", 0, len(body), WHOLE) + body
    (folder / "run-a.wandb").write_bytes(content)
    return folder / "run-a.wandb"


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    write_json(folder.state_file, {"format": 1, "recipe": "mini", "stages": {"teacher": RECORD_OF_STAGE}})
    return folder


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("PW")
    return path


def naming_files(way, secret, folder):
    """A record that has a file sent along, in one of the ways that there are."""
    record = Record()
    match way:
        case "an artifact":
            record.artifact.manifest.contents.add(path="x", local_path=str(secret))
        case "an artifact in a request":
            record.request.log_artifact.artifact.manifest.contents.add(path="x", local_path=str(secret))
        case "a reference":
            record.artifact.manifest.contents.add(path="x", ref=f"file://{secret}")
        case "a manifest":
            record.artifact.manifest.manifest_file_path = str(secret)
        case "a path upwards":
            record.files.files.add(path=os.path.relpath(secret, folder / "files"))
        case "a whole path":
            record.files.files.add(path=str(secret))
        case "a folder of TensorBoard":
            record.tbrecord.log_dir = str(secret.parent)
        case "a link":
            (folder / "files").mkdir(parents=True)
            (folder / "files" / "config.yaml").symlink_to(secret)
        case "a link in the place of the stage's records":
            folder.parent.parent.mkdir(parents=True)
            (secret.parent / "elsewhere").mkdir()
            folder.parent.symlink_to(secret.parent / "elsewhere")
        case "a link to a folder":
            (folder / "files").mkdir(parents=True)
            (folder / "files" / "media").symlink_to(secret.parent)
    return record


WAYS = ["an artifact", "an artifact in a request", "a reference", "a manifest", "a path upwards", "a whole path"]
WAYS += ["a folder of TensorBoard", "a link", "a link to a folder", "a link in the place of the stage's records"]


@pytest.mark.parametrize("way", WAYS)
def test_a_record_that_would_take_along_a_file_of_this_user_is_not_sent(run, secret, way, capsys, monkeypatch):
    folder = run.path / "teacher/wandb/offline-run-20260101_000000-a"
    record = naming_files(way, secret, folder)
    write_record(folder, Record(), record)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("launcher.tracking.sync._sync", lambda *_: pytest.fail("it is sent"))
    assert chorus(["sync", str(run.path)]) == 1
    assert "it would take along" in capsys.readouterr().out


def test_a_file_that_is_no_longer_there_is_no_reason_not_to_send_the_others(run, tmp_path):
    record = Record()
    # Of a run folder that was moved since.
    record.artifact.manifest.contents.add(path="x", local_path=str(tmp_path / "former/run/staging/x"))
    file = write_record(run.path / "teacher/wandb/offline-run-20260101_000000-a", record)
    assert file_elsewhere(file, [run.path]) is None


@pytest.mark.parametrize("plant", ["pipe", "device", "words", "two records"])
def test_a_record_that_is_none_is_named_and_not_sent(run, plant, capsys, monkeypatch):
    file = write_record(run.path / "teacher/wandb/offline-run-20260101_000000-a", Record())
    match plant:
        case "pipe":
            file.unlink()
            os.mkfifo(file)
        case "device":
            file.unlink()
            file.symlink_to("/dev/zero")
        case "words":
            file.write_bytes(bytes(FILE_HEADER_BYTES) + struct.pack("<IHB", 0, 9, WHOLE) + b"\xff" * 9)
        case "two records":
            file.with_name("run-b.wandb").write_bytes(b"")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("launcher.tracking.sync._sync", lambda *_: pytest.fail("it is sent"))
    assert chorus(["sync", str(run.path)]) == 1
    assert "not sent: it" in capsys.readouterr().out


def test_what_a_stage_of_ours_recorded_is_sent_whole(tmp_path):
    stage = tmp_path / "run" / "teacher"
    write_json(stage / "wandb.json", {"id": "../../elsewhere"})
    tracker = open_tracker(stage, TrackingConfig(wandb=WandbConfig(mode="offline")))
    tracker.log({"step": 1, "loss": 2.0})
    tracker.table(lambda: Table("examples", ("text",), [["a" * 100_000]]))
    tracker.artifacts(lambda: [Artifact("a", "model", "ab", {"from": "b"})], used=False)
    tracker.close(60)
    # With an id of its own in the place of what was none.
    assert json.loads((stage / "wandb.json").read_text())["id"].isalnum()
    (file,) = stage.glob("wandb/*run-*/*.wandb")
    assert file_elsewhere(file, [tmp_path / "run"]) is None
    # The same files are of somebody else where the run is another.
    assert file_elsewhere(file, [tmp_path / "run" / "student"]) is not None
