"""What a training makes of its recipe's settings for broken and remote shards."""

import shutil

import pytest
import torch
from damage import change_byte
from web_servers import serve_files

from data.errors import DataError
from data.remote.settings import CACHE_VARIABLE
from data.shards.index import read_index
from launcher.errors import exit_code
from launcher.quarantine import read_quarantined
from launcher.recipe import load_recipe
from launcher.stages.context import StageContext
from launcher.training.inputs import open_inputs

CPU = torch.device("cpu")
NUM_BROKEN = 12


@pytest.fixture
def broken(shards, make_run, tmp_path, monkeypatch):
    """A run folder, and shards of which some were changed after they were written."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    shutil.copytree(shards, tmp_path / "shards")
    split = tmp_path / "shards" / "train"
    index = read_index(split)
    for utterance in range(NUM_BROKEN):
        change_byte(split, utterance, int(index.size[utterance]) // 2)
    return make_run("broken"), tmp_path / "shards"


def open_train(run, place, *changes):
    recipe = load_recipe(run.path / "start.yaml", [f"corpus.shards={place}", *changes])
    context = StageContext.training(recipe, run, recipe.training_stages()[0].name)
    inputs = open_inputs(context, "train", tuple(range(context.batches.lanes)), CPU, context.augment)
    return context, inputs


def read_epoch(inputs):
    return [batch for step in inputs.steps(0, inputs.sampler.steps_per_epoch) for batch in step]


@pytest.mark.parametrize("place", ["folder", "web server"])
def test_within_the_share_of_the_recipe_what_is_broken_is_recorded_and_the_rest_is_read(broken, tmp_path, place):
    run, shards = broken
    with serve_files(tmp_path) as server:
        folder = shards if place == "folder" else f"{server.url}/shards"
        context, inputs = open_train(run, folder, "cluster.storage.max_quarantined=0.5")
        assert inputs.loader.connections == (0 if place == "folder" else 16)
        batches = read_epoch(inputs)
    keys = list(read_index(shards / "train").keys())
    quarantined = {key for batch in batches for key in batch.quarantined}
    assert quarantined == set(keys[:NUM_BROKEN])
    rows = list(read_quarantined(context.folder.quarantine_file(0)))
    assert {row["key"] for row in rows} == quarantined
    assert all(row["shard"].startswith(str(folder)) for row in rows)
    assert all("the file was changed" in row["reason"] for row in rows)
    # Nothing is kept in a run folder but what is named.
    assert "cache" not in {path.name for path in run.path.iterdir()}


def test_above_the_share_the_stage_ends_with_exit_code_3(broken):
    run, shards = broken
    _, inputs = open_train(run, shards)
    with pytest.raises(
        DataError, match=r"10 of the first .* more than the 1\.0% that cluster\.storage\.max_quar"
    ) as error:
        read_epoch(inputs)
    assert exit_code(error.value) == 3
