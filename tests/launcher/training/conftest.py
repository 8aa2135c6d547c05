"""A run folder on a little real speech, ready for its training stage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_runs import recipe_values, write_shards

from data.features import measure_statistics
from data.shards.reader import ShardReader
from data.shards.writer import read_index
from data.text.tokenizer import train_tokenizer
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Some phrases of the embedded corpus as shards."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def make_run(shards, tmp_path_factory) -> Callable[..., RunFolder]:
    """Makes run folders of a small shared-expert student; `changes` are recipe overrides."""

    def make(name: str, changes: tuple[str, ...] = ()) -> RunFolder:
        run = RunFolder(tmp_path_factory.mktemp(name))
        recipe_file = run.path / "start.yaml"
        recipe_file.write_text(yaml.safe_dump(recipe_values(shards)))
        write_recipe(run, changes)
        index = read_index(shards / "train")
        recipe = load_recipe(run.recipe_file)
        train_tokenizer(index.transcripts(), recipe.tokenizer, run.tokenizer)
        mean, std = measure_statistics(ShardReader(index), recipe.features, recipe.seed, utterances=20)
        write_json(run.features_file, {"mean": mean.tolist(), "std": std.tolist()})
        return run

    return make


def write_recipe(run: RunFolder, changes: tuple[str, ...]) -> None:
    """Resolve the run's recipe with overrides, as the launcher does before it starts processes."""
    from launcher.recipe import dump

    run.recipe_file.write_text(dump(load_recipe(run.path / "start.yaml", list(changes))))
