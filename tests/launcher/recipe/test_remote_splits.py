"""Splits of a recipe's corpus behind a URL."""

import pytest
import yaml
from small_runs import recipe_values
from web_servers import serve_files

from data.errors import DataError
from data.remote.retrying import RetryPolicy
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder

SUMMARY = '{"format": 1, "sample_rate_hz": 16000, "made_from": "", "shards": [], "rejected": []}'


@pytest.fixture
def server(tmp_path, monkeypatch):
    policy = RetryPolicy(attempts=2, first_pause_s=0.01)
    monkeypatch.setattr("data.shards.index.RetryPolicy", lambda: policy)
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / "corpus" / "train" / "shards.json").write_text(SUMMARY)
    with serve_files(tmp_path) as files:
        yield files


@pytest.fixture
def recipe(server, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values(tmp_path)))
    return load_recipe(tmp_path / "recipe.yaml", [f"corpus.shards={server.url}/corpus"])


def test_a_split_that_is_not_there_is_none_and_one_failure_hides_none_that_is(server, recipe, tmp_path):
    run = RunFolder(tmp_path / "run")
    # Every second request fails.
    server.fault = lambda _, number: "500" if number % 2 == 0 else ""
    assert recipe.has_split(run, "train")
    assert not recipe.has_split(run, "dev")


@pytest.mark.parametrize("fault", ["500", "403", "429", "cut"])
def test_a_store_that_fails_or_refuses_is_no_corpus_without_that_split(server, recipe, tmp_path, fault):
    """A run would else go on without ever validating."""
    server.fault = lambda *_: fault
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=r"shards\.json could not be read from|cannot be read"):
            recipe.has_split(RunFolder(tmp_path / "run"), split)
