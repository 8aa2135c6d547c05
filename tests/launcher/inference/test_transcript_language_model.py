"""A run's own transcripts as the language model of its evaluations."""

import numpy as np
import pytest
import soundfile

from data.audio import Clip, Utterance
from data.shards.writer import write_split
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.inference.language_model import with_language_model
from launcher.inference.search import read_scorer
from launcher.recipe import load_recipe
from launcher.recipe.search import counts_transcripts, read_search
from launcher.report.results import tabulate
from launcher.run_folder import RunFolder
from launcher.stages.pipeline import build_pipeline

TEXTS = ("one two", "two three", "one one three")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    audio = folder / "a.wav"
    soundfile.write(audio, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    utterances = []
    for number, text in enumerate(TEXTS):
        utterances.append(Utterance(f"u{number}", (Clip(audio),), text, "train"))
    run = RunFolder(folder)
    write_split(utterances, run.corpus / "train", sample_rate_hz=16000, shard_seconds=60.0, seed=1)
    train_tokenizer(TEXTS, TokenizerConfig(kind="char"), run.tokenizer)
    return run


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("mini")


def search_of(**language_model):
    return read_search({"kind": "prefix_beam", "language_model": language_model}, "test")


@pytest.mark.parametrize("unit", ["word", "token"])
def test_it_is_the_model_that_the_command_makes_of_the_run(run, recipe, unit, tmp_path):
    search = with_language_model(search_of(order=3, unit=unit), recipe, run)
    recipe_file = run.recipe_file
    recipe_file.write_text("name: mini\nextends: mini\n")
    out = tmp_path / "lm.arpa"
    assert chorus(["language-model", str(run.path), "--order", "3", "--unit", unit, "--out", str(out)]) == 0
    assert search.language_model.path.read_bytes() == out.read_bytes()
    assert search.language_model.order == 3


def test_it_is_made_once_for_the_same_texts_tokens_and_order(run, recipe):
    heard = []
    first = with_language_model(search_of(order=2, unit="token"), recipe, run, lambda: heard.append(1))
    assert len(heard) == len(TEXTS)
    again = with_language_model(search_of(order=2, unit="token"), recipe, run, lambda: heard.append(1))
    assert len(heard) == len(TEXTS)
    assert again == first
    longer = with_language_model(search_of(order=4, unit="token"), recipe, run)
    assert longer.language_model.path != first.language_model.path


def test_a_search_without_one_stays_as_it_is(run, recipe, tmp_path):
    for search in (read_search({"kind": "greedy"}, "test"), search_of(path=str(tmp_path / "lm.arpa"))):
        assert with_language_model(search, recipe, run) == search
        assert not counts_transcripts(search)


@pytest.mark.parametrize("values", [{}, {"path": "lm.arpa", "order": 3}, {"order": 0}, {"order": 21}])
def test_a_language_model_has_a_path_or_an_order(values):
    with pytest.raises(ConfigError, match=r"language_model"):
        search_of(**values)


def test_outside_of_a_run_there_are_no_transcripts_to_make_it_of(run):
    with pytest.raises(ConfigError, match="made only in a run"):
        read_scorer(search_of(order=3).language_model, None)


def test_an_evaluation_is_done_again_when_the_transcripts_change():
    override = "stages.evaluation.search={kind: prefix_beam, language_model: {order: 3}}"
    pipeline = build_pipeline(load_recipe("mini", [override]))
    (evaluation,) = [node for node in pipeline if node.name == "evaluation"]
    assert "corpus/train" in evaluation.inputs


def test_the_table_of_results_says_which_model_a_search_had():
    search = {"kind": "prefix_beam", "language_model": {"order": 6, "path": "lm.arpa"}}
    scores = {"cer": 0.1, "wer": 0.5, "rtf": 0.01, "utterances": 2, "search": search}
    assert "prefix beam, 6-gram" in str(tabulate({"student": {"test": scores}}, {}))
