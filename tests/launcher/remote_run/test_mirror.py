"""What a store has of a run is usable at every moment, whatever is killed when."""

import json

import pytest
from conftest import (
    STAGE,
    make_mirror,
    new_run,
    read_inventory,
    recipe_of,
    upload_everything,
    write_checkpoint,
    write_state,
)

from launcher.errors import CheckpointError
from launcher.remote_run import mirror as mirror_module
from launcher.remote_run.fetching import fetch_to_resume
from launcher.remote_run.object_store import ObjectStore
from launcher.run_folder import RunFolder, read_json, write_json


class Killed(BaseException):
    """The launcher is killed: nothing that it has still to do is done."""


class MortalStore(ObjectStore):
    """A store whose launcher is killed at its n-th write, before the write arrives or right after it."""

    def __init__(self, url, deaths, after):
        super().__init__(url)
        self.left = deaths
        self._after = after

    def _die(self, write):
        self.left -= 1
        if self.left != 0:
            return write()
        if self._after:
            write()
        raise Killed

    def write(self, name, content):
        self._die(lambda: super(MortalStore, self).write(name, content))

    def upload(self, name, path, is_stopped=lambda: False):
        self._die(lambda: super(MortalStore, self).upload(name, path, is_stopped))

    def copy(self, name, new_name):
        self._die(lambda: super(MortalStore, self).copy(name, new_name))

    def remove(self, name):
        self._die(lambda: super(MortalStore, self).remove(name))


def check_store(url, folder, run):
    """What a fresh host gets from the store is whole, and is what the run has had."""
    store = ObjectStore(url)
    for path in store._filesystem.store:
        if path.endswith("/checkpoints/latest"):
            step = store._filesystem.cat_file(path).decode().strip()
            manifest = json.loads(store._filesystem.cat_file(path.replace("latest", f"{step}/manifest.json")))
            for part in manifest["files"]:
                assert store._filesystem.exists(path.replace("latest", f"{step}/{part['name']}"))
    if store.read("inventory.json") is None:
        return 0
    fresh = RunFolder(folder)
    fetch = fetch_to_resume(store, read_inventory(store), fresh, recipe_of(STAGE), ())
    assert not fetch.damaged
    steps = fresh.stage(STAGE).checkpoint_steps()
    for step in steps:
        # Never without the record of its stage, nor without its rows.
        assert STAGE in read_json(fresh.state_file)["stages"]
        rows = [json.loads(line) for line in fresh.stage(STAGE).metrics_file.read_text().splitlines()]
        assert any(row["step"] == step for row in rows)
        for path in run.stage(STAGE).checkpoint(step).iterdir():
            assert (fresh.stage(STAGE).checkpoint(step) / path.name).read_bytes() == path.read_bytes()
    return max(steps, default=0)


@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
def test_killed_at_any_write_the_store_has_a_whole_checkpoint_and_the_next_launcher_ends_with_all(
    memory, tmp_path, after
):
    deaths = 0
    newest = 0
    while True:
        deaths += 1
        ObjectStore(memory)._filesystem.store.clear()
        run = new_run(tmp_path / f"run-{deaths}")
        write_checkpoint(run.stage(STAGE), 4, 0.9, parts=1)
        write_checkpoint(run.stage(STAGE), 8, 0.5)
        store = MortalStore(memory, deaths, after)
        mirror = make_mirror(run, store)
        try:
            upload_everything(mirror)
            write_checkpoint(run.stage(STAGE), 12, 0.6)
            upload_everything(mirror)
        except Killed:
            reached = check_store(memory, tmp_path / f"fresh-{deaths}", run)
            # What was there once never is not.
            assert reached >= newest or reached >= 8
            newest = max(newest, reached)
        else:
            break
        content = ObjectStore(memory).read("inventory.json")
        inventory = read_inventory(ObjectStore(memory)) if content else None
        upload_everything(make_mirror(run, ObjectStore(memory), inventory))
        final = read_inventory(ObjectStore(memory))
        expected = {8, 12} if run.stage(STAGE).checkpoint(12).exists() else {4, 8}
        assert set(final.checkpoints[STAGE]) == expected
        # Nothing else is left there than what the inventory names.
        prefix = ObjectStore(memory)._filesystem._strip_protocol(memory)
        objects = {path.removeprefix(f"{prefix}/") for path in ObjectStore(memory)._filesystem.store}
        assert objects == {*final.files, "inventory.json", f"{STAGE}/checkpoints/latest"}
    assert deaths > 15


def test_a_fresh_host_fetches_the_newest_checkpoint_alone_and_older_ones_go_by_what_the_store_has(memory, tmp_path):
    first = new_run(tmp_path / "first")
    for step, cer in ((4, 0.9), (8, 0.1), (12, 0.6), (16, 0.7)):
        write_checkpoint(first.stage(STAGE), step, cer)
    store = ObjectStore(memory)
    upload_everything(make_mirror(first, store))
    assert set(read_inventory(store).checkpoints[STAGE]) == {8, 12, 16}

    second = RunFolder(tmp_path / "second")
    fetch_to_resume(store, read_inventory(store), second, recipe_of(STAGE), ())
    assert second.stage(STAGE).checkpoint_steps() == [16]
    assert second.stage(STAGE).latest_file.read_text() == "step-00000016\n"
    mirror = make_mirror(second, store, read_inventory(store))
    write_checkpoint(second.stage(STAGE), 20, 0.8)
    upload_everything(mirror)
    # The best one was never on this host's disk, and stays in the store.
    assert set(read_inventory(store).checkpoints[STAGE]) == {8, 16, 20}
    write_checkpoint(second.stage(STAGE), 24, 0.8)
    upload_everything(mirror)
    # Here 16 is the best; by what the store has it goes, and is not uploaded again.
    assert set(read_inventory(store).checkpoints[STAGE]) == {8, 20, 24}
    assert mirror.missing_sets() == []


def test_a_stage_whose_model_is_made_of_several_checkpoints_gets_all_of_them(memory, tmp_path):
    run = new_run(tmp_path / "run")
    for step in (4, 8):
        write_checkpoint(run.stage(STAGE), step)
    store = ObjectStore(memory)
    upload_everything(make_mirror(run, store))
    fresh = RunFolder(tmp_path / "fresh")
    average = type("Average", (), {"kind": "last"})()
    fetch_to_resume(store, read_inventory(store), fresh, recipe_of(STAGE, average=average), ())
    assert fresh.stage(STAGE).checkpoint_steps() == [4, 8]


def test_a_finished_stage_is_fetched_with_its_model_and_without_checkpoints_unless_it_is_extended(memory, tmp_path):
    run = new_run(tmp_path / "run")
    write_checkpoint(run.stage(STAGE), 4)
    run.stage(STAGE).model.mkdir()
    (run.stage(STAGE).model / "model.safetensors").write_bytes(b"weights")
    write_state(run, student="done")
    store = ObjectStore(memory)
    upload_everything(make_mirror(run, store))
    fresh = RunFolder(tmp_path / "fresh")
    fetch_to_resume(store, read_inventory(store), fresh, recipe_of(STAGE), ())
    assert fresh.stage(STAGE).checkpoint_steps() == []
    assert (fresh.stage(STAGE).model / "model.safetensors").read_bytes() == b"weights"
    extended = RunFolder(tmp_path / "extended")
    fetch_to_resume(store, read_inventory(store), extended, recipe_of(STAGE), {STAGE})
    assert extended.stage(STAGE).checkpoint_steps() == [4]


def test_a_stage_is_not_called_done_before_its_model_is_there(memory, tmp_path, monkeypatch):
    run = new_run(tmp_path / "run")
    store = ObjectStore(memory)
    mirror = make_mirror(run, store)
    upload_everything(mirror)
    run.stage(STAGE).model.mkdir()
    (run.stage(STAGE).model / "model.safetensors").write_bytes(b"weights")
    write_state(run, student="done")
    states = []
    upload = ObjectStore.upload

    def record(self, name, path, is_stopped=lambda: False):
        upload(self, name, path, is_stopped)
        states.append((name, json.loads(store.read("state.json"))["stages"][STAGE]["status"]))

    monkeypatch.setattr(ObjectStore, "upload", record)
    upload_everything(mirror)
    assert (f"{STAGE}/model/model.safetensors", "running") in states
    assert states[-1] == ("state.json", "done")


def test_a_stage_that_is_set_aside_and_begun_anew_is_moved_in_the_store_with_what_is_only_there(memory, tmp_path):
    first = new_run(tmp_path / "first")
    for step in (4, 8):
        write_checkpoint(first.stage(STAGE), step)
    store = ObjectStore(memory)
    upload_everything(make_mirror(first, store))
    run = RunFolder(tmp_path / "second")
    fetch_to_resume(store, read_inventory(store), run, recipe_of(STAGE), ())
    mirror = make_mirror(run, store, read_inventory(store))
    upload_everything(mirror)
    # As `--set-aside` does, on a host that has the newest checkpoint alone.
    write_json(run.stage(STAGE).record_file, {"kind": "pretrain"})
    run.stage(STAGE).path.rename(run.path / f"{STAGE}.old-1")
    run.stage(STAGE).logs.mkdir(parents=True)
    write_checkpoint(run.stage(STAGE), 2)
    upload_everything(mirror)
    inventory = read_inventory(store)
    assert set(inventory.checkpoints[f"{STAGE}.old-1"]) == {4, 8}
    assert set(inventory.checkpoints[STAGE]) == {2}
    fresh = RunFolder(tmp_path / "third")
    fetch = fetch_to_resume(store, inventory, fresh, recipe_of(STAGE), ())
    assert not fetch.damaged
    assert fresh.stage(STAGE).checkpoint_steps() == [2]
    assert fresh.stage(f"{STAGE}.old-1").checkpoint_steps() == [8]


def test_a_checkpoint_that_is_damaged_here_stays_out_of_the_store_and_is_named(memory, tmp_path):
    run = new_run(tmp_path / "run")
    write_checkpoint(run.stage(STAGE), 4)
    store = ObjectStore(memory)
    mirror = make_mirror(run, store)
    upload_everything(mirror)
    write_checkpoint(run.stage(STAGE), 8)
    part = run.stage(STAGE).checkpoint(8) / "rank-00001.safetensors"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    upload_everything(mirror)
    assert set(read_inventory(store).checkpoints[STAGE]) == {4}
    assert [event["step"] for event in run.events() if event["event"] == "upload_skipped"] == [8]


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_checkpoint_that_was_damaged_in_the_store_is_passed_over_for_the_one_before(memory, tmp_path, damage):
    run = new_run(tmp_path / "run")
    for step in (4, 8):
        write_checkpoint(run.stage(STAGE), step)
    store = ObjectStore(memory)
    upload_everything(make_mirror(run, store))
    name = f"{STAGE}/checkpoints/step-00000008/rank-00001.safetensors"
    content = store.read(name)
    if damage == "gone":
        store.remove(name)
    else:
        store.write(name, content[:-1] if damage == "short" else b"x" + content[1:])
    fresh = RunFolder(tmp_path / "fresh")
    fetch = fetch_to_resume(store, read_inventory(store), fresh, recipe_of(STAGE), ())
    assert fresh.stage(STAGE).checkpoint_steps() == [4]
    assert name in fetch.damaged
    assert name in fetch.explain()


def test_a_record_of_the_stages_that_was_changed_in_the_store_is_refused(memory, tmp_path):
    run = new_run(tmp_path / "run")
    store = ObjectStore(memory)
    upload_everything(make_mirror(run, store))
    store.write("state.json", b"{}")
    with pytest.raises(CheckpointError, match=r"state\.json is not what was written") as caught:
        fetch_to_resume(store, read_inventory(store), RunFolder(tmp_path / "fresh"), recipe_of(STAGE), ())
    assert "\n" not in str(caught.value)


def test_many_changes_of_a_file_are_one_upload_and_a_look_without_changes_writes_nothing(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_module, "SMALL_EVERY_S", 3600.0)
    run = new_run(tmp_path / "run")
    store = ObjectStore(memory)
    mirror = make_mirror(run, store)
    upload_everything(mirror)
    uploads = []
    monkeypatch.setattr(ObjectStore, "upload", lambda self, name, path, is_stopped: uploads.append(name))
    monkeypatch.setattr(ObjectStore, "write", lambda self, name, content: uploads.append(name))
    for step in range(100):
        with run.stage(STAGE).metrics_file.open("a") as file:
            file.write(f'{{"step": {step}}}\n')
        mirror.look(everything=False)
    assert uploads == []
    mirror.look(everything=True)
    assert uploads.count(f"{STAGE}/metrics.jsonl") == 1
    before = list(uploads)
    assert mirror.look(everything=True)
    assert uploads == before


def test_what_belongs_to_this_host_or_is_made_again_is_not_uploaded(memory, tmp_path):
    run = new_run(tmp_path / "run")
    stage = run.stage(STAGE)
    for path in (
        run.token_file,
        run.lock_file,
        run.batch_script,
        run.order_file(1),
        run.corpus / "train" / "shard-00000.tar",
        stage.heartbeat_file(0),
        stage.stop_file,
        stage.launch_file,
        stage.wandb / "offline-run-1" / "run-1.wandb",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("private")
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    (stage.logs / "link").symlink_to(outside)
    (stage.path / "memory").mkdir()
    (stage.path / "memory" / "rank-00.json").write_text("{}")
    store = ObjectStore(memory)
    upload_everything(make_mirror(run, store))
    assert set(read_inventory(store).files) == {"recipe.yaml", "state.json", f"{STAGE}/memory/rank-00.json"}
