"""A real training, uploaded while it goes on, and resumed from the store in an empty folder."""

import processes
import yaml
from conftest import make_mirror, read_inventory, recipe_of, write_state
from safetensors.torch import load_file
from small_runs import STAGE, recipe_values, write_shards

from data.features import measure_statistics
from data.shards.reader import ShardReader
from data.shards.writer import read_index
from data.text.tokenizer import train_tokenizer
from launcher.recipe import dump, load_recipe
from launcher.remote_run import mirror as mirror_module
from launcher.remote_run import uploading
from launcher.remote_run.fetching import fetch_to_resume
from launcher.remote_run.object_store import ObjectStore
from launcher.remote_run.uploading import Uploader
from launcher.run_folder import RunFolder, write_json
from launcher.tracking import read_metrics

# Of one process, which has all experts: where a run takes place changes nothing.
CHANGES = (
    "cluster.processes=1",
    "cluster.expert_parallel=1",
    "batches.lanes=1",
    "stages.student.steps=4",
    "stages.student.log_every=1",
    "stages.student.checkpoint.every_steps=2",
)


def prepare(folder, shards) -> RunFolder:
    run = RunFolder(folder)
    run.path.mkdir()
    start = folder.with_suffix(".yaml")
    start.write_text(yaml.safe_dump(recipe_values(shards)))
    recipe = load_recipe(start, list(CHANGES))
    run.recipe_file.write_text(dump(recipe))
    index = read_index(shards / "train")
    train_tokenizer(index.transcripts(), recipe.tokenizer, run.tokenizer)
    mean, std = measure_statistics(ShardReader(index), recipe.features, recipe.seed, utterances=20)
    write_json(run.features_file, {"mean": mean.tolist(), "std": std.tolist()})
    write_state(run, student="running")
    return run


def train(run: RunFolder) -> None:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], 1, run.path / "log")


def losses(run: RunFolder) -> list:
    return [(row["step"], row["loss"]) for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row]


def test_a_training_that_is_resumed_from_the_store_on_an_empty_disk_ends_with_the_same_weights(
    bucket, server, tmp_path, monkeypatch
):
    monkeypatch.setattr(uploading, "LOOK_S", 0.05)
    monkeypatch.setattr(uploading, "MAX_PAUSE_S", 0.2)
    monkeypatch.setattr(mirror_module, "SMALL_EVERY_S", 0.1)
    shards = write_shards(tmp_path / "shards")
    run = prepare(tmp_path / "run", shards)
    store = ObjectStore(f"{bucket}/run")
    uploader = Uploader(run, store.url, make_mirror(run, store), lambda sentence: None)
    # What comes after the first checkpoint does not arrive whole, as when the host is lost while it is uploaded.
    server.fault("PUT", "step-00000004/manifest", status=500)
    uploader.start()
    train(run)
    missing = uploader.finish(60, lambda: len(read_inventory(store).checkpoints.get(STAGE, {})) > 0)
    assert "the checkpoint of step 4 of student" in missing

    fresh = RunFolder(tmp_path / "fresh")
    fetch = fetch_to_resume(store, read_inventory(store), fresh, recipe_of(STAGE), ())
    assert not fetch.damaged
    assert fresh.stage(STAGE).checkpoint_steps() == [2]
    train(fresh)
    assert losses(fresh) == losses(run)
    expected = load_file(run.stage(STAGE).model / "model.safetensors")
    weights = load_file(fresh.stage(STAGE).model / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, values in weights.items():
        assert values.equal(expected[name]), name
