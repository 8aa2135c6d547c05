"""A launcher and a store that fails, refuses, stands still, or belongs to somebody else by now."""

import json
import os
import time

import pytest
from conftest import (
    SECRET,
    STAGE,
    clear_clients,
    make_mirror,
    new_run,
    read_inventory,
    recipe_of,
    retire,
    upload_everything,
    write_checkpoint,
)
from run_folders import write_run
from small_runs import recipe_values

from data.remote import stores
from launcher.cli import main
from launcher.errors import CheckpointError, ConfigError, Preempted, exit_code
from launcher.inference.model_lookup import find_model
from launcher.processes.stop_request import StopRequest
from launcher.remote_run import lease as lease_module
from launcher.remote_run import mirror as mirror_module
from launcher.remote_run import uploading
from launcher.remote_run.lease import LEASE
from launcher.remote_run.object_store import ObjectStore
from launcher.remote_run.stored_run import StoredRun
from launcher.remote_run.uploading import Uploader
from launcher.run_folder import RunFolder, read_json, write_json


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(uploading, "LOOK_S", 0.05)
    monkeypatch.setattr(mirror_module, "SMALL_EVERY_S", 0.1)
    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    monkeypatch.setattr(lease_module, "SILENCE_S", 20.0)
    monkeypatch.setattr(lease_module, "LOOK_S", 0.05)


def wait_for(condition, what):
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def count_events(run, name):
    return sum(event["event"] == name for event in run.events())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 403}, "a fault on command"),
        ({"status": 500}, "a fault on command"),
        ({"status": 507}, "it has no room"),
        ({"stall_s": 2.0}, ""),
    ],
    ids=["it refuses", "it fails", "it is full", "it stands still"],
)
def test_a_store_that_takes_nothing_costs_no_memory_and_gets_everything_once_it_does(
    bucket, server, tmp_path, monkeypatch, fault, words
):
    # A store that stands still is given up soon; one that answers does so within this on a busy machine.
    monkeypatch.setattr(stores, "STALL_S", 1.0 if "stall_s" in fault else 30.0)
    run = new_run(tmp_path / "run")
    stage = run.stage(STAGE)
    store = ObjectStore(f"{bucket}/run")
    mirror = make_mirror(run, store)
    said = []
    uploader = Uploader(run, store.url, mirror, said.append)
    write_checkpoint(stage, 4)
    uploader.start()
    wait_for(lambda: mirror.stored_checkpoints() == {STAGE: 4}, "the first checkpoint is uploaded")
    server.fault("PUT", "", **fault)
    for step in range(8, 84, 4):
        write_checkpoint(stage, step)
        retire(stage, step - 4)
    wait_for(lambda: count_events(run, "upload_failed"), "the fault is told")
    assert words in uploader.problem
    # What waits is what the run folder has, and never more than a set of files beside it.
    staged = [path for path in (run.path / mirror_module.STAGING).rglob("*") if path.is_file()]
    assert len(staged) < 10
    assert count_events(run, "upload_failed") == 1
    wait_for(lambda: read_json(run.upload_file)["problem"], "the status says it")
    server.clear()
    assert uploader.finish(30, lambda: False) == []
    assert count_events(run, "uploads_resumed") == 1
    assert [sentence.split()[0] for sentence in said] == ["Uploading", "The"]
    inventory = read_inventory(store)
    # The checkpoints that came and went meanwhile are not missed.
    assert set(inventory.checkpoints[STAGE]) == {4, 80}
    assert store.read(f"{STAGE}/checkpoints/latest") == b"step-00000080\n"
    assert store.read(f"{STAGE}/metrics.jsonl") == stage.metrics_file.read_bytes()


def do_connected(url, run, work=lambda: None, stop=None, say=lambda sentence: None, timeout_s=30.0):
    """Do as a launcher does, and `work` in between."""
    with StoredRun(url, run, recipe_of(STAGE), stop or StopRequest(), say).connected(set(), timeout_s):
        work()


def test_a_run_that_ends_well_says_what_is_not_uploaded_and_its_exit_code_is_that_of_a_lost_checkpoint(
    bucket, server, tmp_path
):
    url = f"{bucket}/run"
    run = RunFolder(tmp_path / "run")

    def work():
        server.fault("PUT", "step-00000004", status=500)
        new_run_in(run)
        write_checkpoint(run.stage(STAGE), 4)

    with pytest.raises(CheckpointError, match="the checkpoint of step 4 of student") as caught:
        do_connected(url, run, work, timeout_s=0.5)
    assert "\n" not in str(caught.value)
    assert str(run.path) in str(caught.value)
    assert exit_code(caught.value) == 4
    server.clear()
    # The same command uploads the rest, and is not kept waiting by its own former lease.
    said = []
    do_connected(url, run, say=said.append)
    assert said == []
    assert set(read_inventory(ObjectStore(url)).checkpoints[STAGE]) == {4}
    assert not (run.path / mirror_module.STAGING).exists()


def new_run_in(run):
    """What a run writes into the folder that it was given."""
    made = new_run(run.path.with_name(f"{run.path.name}-made"))
    run.path.mkdir(exist_ok=True)
    for path in made.path.iterdir():
        path.rename(run.path / path.name)


def test_a_stopped_run_leaves_with_its_own_code_and_a_second_signal_ends_the_wait(bucket, server, tmp_path):
    stop = StopRequest()
    said = []
    run = RunFolder(tmp_path / "run")

    def ask_again(sentence):
        said.append(sentence)
        stop.request()

    began_s = time.monotonic()

    def work():
        new_run_in(run)
        server.fault("PUT", "recipe.yaml", status=500)
        raise Preempted("The run was asked to stop.")

    with pytest.raises(Preempted):
        do_connected(f"{bucket}/run", run, work, stop, ask_again)
    assert time.monotonic() - began_s < 30
    assert any("Not all of the run is in" in sentence for sentence in said)


def test_a_launcher_that_was_overtaken_stops_writes_nothing_more_and_says_by_whom(bucket, tmp_path):
    url = f"{bucket}/run"
    stop = StopRequest()
    run = RunFolder(tmp_path / "run")
    store = ObjectStore(url)
    claim = b'{"claim": "x", "host": "elsewhere", "process": 7, "folder": "y", "renewed": 1, "silence_s": 9.0}'
    inventories = []

    def work():
        new_run_in(run)
        wait_for(lambda: store.read("state.json"), "it is uploaded")
        store.write(LEASE, claim)
        wait_for(lambda: stop.count, "the run is asked to stop")
        inventories.append(store.read("inventory.json"))
        write_checkpoint(run.stage(STAGE), 4)
        raise Preempted("The run was asked to stop.")

    with pytest.raises(ConfigError, match="was taken over by process 7 on elsewhere"):
        do_connected(url, run, work, stop)
    assert store.read("inventory.json") == inventories[0]
    assert store.read(LEASE) == claim


def test_a_folder_that_another_host_has_gone_past_is_set_aside_and_filled_anew(bucket, tmp_path):
    url = f"{bucket}/run"
    first = RunFolder(tmp_path / "first")
    second = RunFolder(tmp_path / "second")

    def begin():
        new_run_in(first)
        write_checkpoint(first.stage(STAGE), 4)

    def go_on():
        assert second.stage(STAGE).checkpoint_steps() == [4]
        write_checkpoint(second.stage(STAGE), 8)

    said = []
    do_connected(url, first, begin)
    do_connected(url, second, go_on)
    do_connected(url, first, say=said.append)
    assert first.stage(STAGE).checkpoint_steps() == [8]
    assert "Another host has gone on" in said[0]
    assert RunFolder(tmp_path / "first.stale-1").stage(STAGE).checkpoint_steps() == [4]


def test_folders_and_stores_of_other_runs_are_refused(bucket, tmp_path):
    url = f"{bucket}/run"
    run = RunFolder(tmp_path / "run")
    do_connected(url, run, lambda: new_run_in(run))
    with pytest.raises(ConfigError, match="is the folder of the run"):
        do_connected(f"{bucket}/b", run)
    other = new_run(tmp_path / "other")
    with pytest.raises(ConfigError, match="holds a run that is not the one in"):
        do_connected(url, other)
    # A run that was never in a store may be given one.
    do_connected(f"{bucket}/new", other)
    assert "state.json" in read_inventory(ObjectStore(f"{bucket}/new")).files
    copied = ObjectStore(f"{bucket}/copied")
    copied.write("state.json", b"{}")
    with pytest.raises(ConfigError, match=r"has a state\.json and no inventory\.json"):
        do_connected(copied.url, RunFolder(tmp_path / "empty"))


def test_two_launchers_of_one_host_meet_at_the_folder(bucket, tmp_path):
    run = RunFolder(tmp_path / "run")

    def work():
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            do_connected(f"{bucket}/run", run)

    do_connected(f"{bucket}/run", run, work)


@pytest.fixture
def recipe_file(tmp_path):
    import yaml

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe_values(tmp_path / "shards")))
    return path


@pytest.mark.parametrize(
    ("run_dir", "words"),
    [
        ("s3://bucket", "names a bucket and no folder in it"),
        ("s3://key:secret-7@bucket/run", "has a secret in it"),
        ("s3://bucket/run?X-Amz-Signature=secret-7", "has a secret in it"),
        ("https://host/run", "A run cannot be kept at"),
        ("simplecache::s3://bucket/run", "A run cannot be kept at"),
        ("s3://bucket/a/../../run", "A run cannot be kept at"),
    ],
)
def test_a_url_that_no_run_can_be_kept_at_is_refused_before_anything_starts(
    recipe_file, capsys, tmp_path, monkeypatch, run_dir, words
):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    assert main(["run", str(recipe_file), "--run-dir", run_dir]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "secret-7" not in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def write_small_shards(recipe_file):
    """No training reads them: what is wrong is seen before."""
    from data.corpora import CORPORA
    from data.corpora.aelita import AelitaConfig
    from data.shards.writer import write_split

    utterances = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    chosen = [utterance for utterance in utterances if utterance.split == "train"][:4]
    write_split(chosen, recipe_file.parent / "shards" / "train", sample_rate_hz=16000, shard_seconds=20, seed=1)


def test_a_bucket_without_permission_ends_the_run_with_exit_code_2_before_anything_starts(
    bucket, server, recipe_file, capsys, tmp_path
):
    write_small_shards(recipe_file)
    server.fault("GET|PUT", "/run/", status=403)
    work = tmp_path / "work"
    assert main(["run", str(recipe_file), "--run-dir", f"{bucket}/run", "--work-dir", str(work)]) == 2
    error = capsys.readouterr().err
    assert "will not let this user" in error
    assert len(error.strip().splitlines()) == 1
    assert SECRET not in error
    assert not work.exists()


def test_without_credentials_the_run_ends_with_exit_code_2(bucket, recipe_file, capsys, tmp_path, monkeypatch):
    write_small_shards(recipe_file)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    clear_clients()
    try:
        arguments = ["run", str(recipe_file), "--run-dir", f"{bucket}/run", "--work-dir", str(tmp_path / "work")]
        assert main(arguments) == 2
    finally:
        clear_clients()
    assert "Give the credentials that it finds" in capsys.readouterr().err


def test_status_and_models_of_a_run_in_a_store_are_read_without_fetching_the_rest(bucket, server, tmp_path, capsys):
    url = f"{bucket}/run"
    run = write_run(tmp_path / "run", stages=("teacher", "student"))
    write_checkpoint(run.stage("student"), 40, size=2**16)
    upload_everything(make_mirror(run, ObjectStore(url)))
    server.forget_requests()
    assert main(["status", url]) == 0
    output = capsys.readouterr().out
    assert "40/100" in output
    fetched = [path for method, path in server.requests() if method == "GET"]
    assert not any(path.endswith(".safetensors") for path in fetched)

    server.forget_requests()
    model = find_model(f"{url}/teacher")
    assert sorted(path.name for path in model.iterdir()) == sorted(p.name for p in run.stage("teacher").model.iterdir())
    fetched = [path for method, path in server.requests() if method == "GET"]
    assert all("/teacher/" in path or path.endswith("inventory.json") for path in fetched)
    # Read again, nothing is fetched twice.
    server.forget_requests()
    find_model(f"{url}/teacher")
    assert all(path.endswith("inventory.json") for method, path in server.requests() if method == "GET")
    assert main(["status", f"{bucket}/elsewhere"]) == 2
    assert "There is no run at" in capsys.readouterr().err


def test_the_status_of_a_run_says_how_far_it_is_uploaded_and_why_it_is_not(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    status = {"url": "s3://bucket/run", "checkpoints": {"teacher": 40}, "num_missing": 2, "problem": "it has no room"}
    status |= {"missing": ["the checkpoint of step 50 of teacher", "teacher/model"], "failing_s": 70.0}
    write_json(run.upload_file, status)
    assert main(["status", str(run.path)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("store s3://bucket/run: 2 to upload, such as the checkpoint of step 50 of teacher")
    assert line.endswith(": it has no room")
    assert main(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == status
    # What another program has left there is not taken for it.
    run.upload_file.write_text("[]")
    assert main(["status", str(run.path)]) == 0
    assert "store" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["../../.ssh/authorized_keys", "/etc/passwd", "a/../b", "student/.work", "student\\x", "a" * 300]
)
def test_an_inventory_that_leads_out_of_the_folder_is_none(memory, name):
    store = ObjectStore(memory)
    entry = {"bytes": 1, "sha256": "0" * 64}
    value = {"format": 1, "id": "i", "files": {name: entry}, "changing": {}, "uploading": {}, "removing": []}
    store.write("inventory.json", json.dumps(value | {"works": {}, "checkpoints": {}}).encode())
    with pytest.raises(ConfigError, match="is not the inventory of a run"):
        read_inventory(store)
