"""The corpus section of a recipe that mixes several corpora."""

import pytest
import yaml

from data.corpora.aelita import AelitaConfig
from launcher.errors import ConfigError
from launcher.recipe import MixtureCorpus, ShardsCorpus, dump, load_recipe
from launcher.recipe.corpora import reads_the_same


def load(corpus, *overrides):
    return load_recipe("mini", [f"corpus={yaml.safe_dump(corpus, default_flow_style=True, width=10**6)}", *overrides])


TWO = {"mix": [{"shards": "/data/a b", "weight": 3}, {"shards": "s3://bucket/second/"}], "temperature": 0.5}


def test_shards_are_called_after_their_folders_and_other_corpora_after_their_kind():
    corpora = load({"mix": [*TWO["mix"], {"name": "aelita", "shard_seconds": 30}]}).corpora()
    assert list(corpora) == ["a-b", "second", "aelita"]
    assert corpora["second"] == ShardsCorpus(shards="s3://bucket/second/")
    assert corpora["aelita"] == AelitaConfig(shard_seconds=30)


def test_a_recipe_that_a_run_keeps_is_the_same_mixture_again(tmp_path):
    recipe = load({"mix": [*TWO["mix"], {"name": "aelita", "from_step": 50, "label": "later"}], "over": "languages"})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert load_recipe(tmp_path / "recipe.yaml", of_run=True) == recipe


def test_settings_of_a_corpus_are_addressed_by_its_label():
    recipe = load(TWO, "corpus.mix.second.weight=7", "corpus.mix.a-b.label=first", "corpus.mix.first.from_step=9")
    assert isinstance(recipe.corpus, MixtureCorpus)
    first, second = recipe.corpus.mixture.corpora
    assert (first.name, first.weight, first.from_step) == ("first", 3.0, 9)
    assert (second.name, second.weight, second.from_step) == ("second", 7.0, 0)
    assert recipe.corpus.initial == (recipe.corpus.mix[1],)


@pytest.mark.parametrize(
    ("corpus", "temperature"),
    [
        (TWO, 0.5),
        ({"mix": [{"shards": "a"}, {"shards": "b"}]}, 1.0),
        ({"mix": [{"shards": "a", "weight": 2}, {"shards": "b"}]}, 0.0),
        ({"mix": [{"shards": "a", "weight": 2}, {"shards": "b"}], "over": "languages"}, 1.0),
        ({"mix": [{"shards": "a", "weight": 2}, {"shards": "b"}], "temperature": 1}, 1.0),
    ],
)
def test_without_a_temperature_weights_are_shares_and_without_both_size_is(corpus, temperature):
    assert load(corpus).corpus.resolved_temperature == temperature


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"mix": []}, "at least 1 item"),
        ({"mix": "a"}, r"corpus\.mix is 'a'"),
        ({"mix": ["a"]}, r"corpus\.mix\.0 is 'a'"),
        ({"mix": [{"shard": "a"}]}, r"corpus\.mix\.0\.name is missing"),
        ({"mix": [{"shards": "x/a"}, {"shards": "y/a"}]}, "2 corpora of the mixture are called a"),
        ({"mix": [{"shards": "a", "from_step": 5}]}, "every corpus of the mixture has a from_step"),
        ({"mix": [{"shards": "a", "weight": 0}]}, r"corpus\.mix\.a\.weight is 0"),
        ({"mix": [{"shards": "a", "weight": True}]}, r"corpus\.mix\.a\.weight is True"),
        ({"mix": [{"shards": "a", "wieght": 2}]}, r"corpus\.mix\.a\.wieght is not a key; did you mean 'weight'"),
        ({"mix": [{"shards": "a", "from_step": -1}]}, r"corpus\.mix\.a\.from_step is -1"),
        ({"mix": [{"shards": "a", "label": "../a"}]}, r"label is '../a'"),
        ({"mix": [{"shards": "a"}], "temperature": 2}, r"corpus\.temperature is 2"),
        ({"mix": [{"shards": "a"}], "over": "speakers"}, r"corpus\.over is 'speakers'"),
        ({"mix": [{"mix": [{"shards": "a"}]}]}, r"corpus\.mix\.0\.name is missing"),
        ({"mix": [{"name": "nonsense"}]}, r"corpus\.mix\.nonsense\.name is 'nonsense', which is none"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_its_key(corpus, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        load(corpus)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("use", ["require", "make"])
def test_outputs_of_teachers_are_not_stored_for_a_mixture(use):
    with pytest.raises(ConfigError, match=r"is a mixture of 2\. Leave distill.cache out"):
        load(TWO, f"stages.student.distill.cache.use={use}", "augment.frequency_masks=0", "augment.time_masks=0")


# --- what a training depends on -----------------------------------------------------------------------------


def settings(steps, *entries, **options):
    mix = [{"shards": name, **keys} for name, keys in entries]
    return load({"mix": mix, **options}).corpus.settings_of(steps)


A = ("a", {})
B_LATER = ("b", {"from_step": 100})


@pytest.mark.parametrize(
    ("before", "after", "same_until"),
    [
        # A corpus alone, then with another from step 100.
        (settings(300, A), settings(300, A, B_LATER), 100),
        # Its weight is nothing while it is alone.
        (settings(300, A), settings(300, ("a", {"weight": 9}), B_LATER), 100),
        (settings(300, A, ("c", {})), settings(300, A, ("c", {}), B_LATER), 100),
        (settings(300, A, B_LATER), settings(300, A, ("b", {"from_step": 200})), 100),
        (settings(300, A, ("c", {})), settings(300, A, ("c", {"weight": 2}), temperature=1), 0),
        (settings(300, A, ("c", {})), settings(300, A, ("c", {}), temperature=0.5), 0),
        (settings(300, A), settings(300, A, ("c", {})), 0),
        (settings(300, A), settings(300, A, over="languages"), 0),
        (settings(300, A), settings(300, ("a", {"weight": 2})), 300),
        # One that joins after the last step is none.
        (settings(100, A), settings(100, A, B_LATER), 300),
    ],
)
def test_work_counts_as_far_as_both_mixtures_read_the_same(before, after, same_until):
    for steps in (1, 99, 100, 101, 200, 300):
        assert reads_the_same(before, after, steps) == (steps <= same_until)
