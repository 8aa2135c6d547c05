"""A model card says what the run's files say, and what they do not say it calls unknown."""

import json

import pytest
import yaml
from small_models import KINDS, write_small_model

from launcher.export.model_card import CardFacts, CorpusFacts, SplitResult, read_facts, write_card
from launcher.export.model_files import open_model_files
from launcher.run_folder import RunFolder, write_json


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return open_model_files(write_small_model(tmp_path_factory.mktemp("card") / "model", "streaming")).recognizer


def metadata_of(card: str) -> dict:
    assert card.startswith("---\n")
    metadata, _ = card.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(metadata)


def write_run(tmp_path, corpus: dict, stage: str = "student") -> RunFolder:
    """A run with results and a prepared corpus."""
    run = RunFolder(tmp_path / "run")
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "corpus.json").write_text(json.dumps(corpus))
    write_json(run.state_file, {"format": 1, "recipe": "small", "stages": {}})
    recipe = {
        "name": "small",
        "corpus": {"shards": str(shards)},
        "stages": [{"name": stage, "kind": "pretrain", "steps": 1, "model": KINDS["full"][0]}],
        "batches": {},
        "cluster": {},
        "tracking": {},
    }
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    evaluated = {"wer": 0.125, "cer": 0.0525, "utterances": 90, "search": {"kind": "greedy"}}
    models = {stage: {"parameters": 7, "test": evaluated, "test/beam": {**evaluated, "search": {"kind": "joint"}}}}
    write_json(run.results_file, {"models": models})
    return run


def test_results_data_and_licence_of_a_run_are_in_the_card(recognizer, tmp_path):
    corpus = {"corpus": {"name": "digits", "root": "/home/somebody"}, "licence": "CC BY-SA 4.0"}
    run = write_run(tmp_path, {**corpus, "splits": {"train": {"hours": 1.528965}}})
    card = write_card(recognizer, read_facts("small-student", run, "student", "cc-by-sa-4.0"))
    metadata = metadata_of(card)
    assert metadata["license"] == "cc-by-sa-4.0"
    assert metadata["library_name"] == "transformers"
    first = metadata["model-index"][0]["results"][0]
    assert first["dataset"]["name"] == "test"
    assert first["metrics"] == [{"type": "wer", "value": 12.5}, {"type": "cer", "value": 5.25}]
    assert "| test | greedy | 12.50% | 5.25% | 90 |" in card
    assert "| test/beam | joint |" in card
    assert "| digits | 1.5 | CC BY-SA 4.0 |" in card
    assert "2 layers, which use one block of width 16" in card
    # Nobody else's business.
    assert "somebody" not in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("corpus", "recorded", "licence"),
    [
        ("librispeech", None, "CC BY 4.0"),
        ("fsdd", None, "CC BY-SA 4.0"),
        ("aelita", None, "of the Festival voice"),
        ("librispeech", "bought from a studio", "bought from a studio"),
        ("folder", None, "not recorded"),
    ],
)
def test_the_licence_of_a_known_corpus_is_its_publishers_unless_the_shards_say_otherwise(
    tmp_path, corpus, recorded, licence
):
    run = write_run(tmp_path, {"corpus": {"name": corpus}, "licence": recorded})
    (facts,) = read_facts("small", run, "student", None).corpora
    assert (facts.licence or "not recorded").startswith(licence)


def test_what_is_not_recorded_is_said_to_be_so(recognizer, tmp_path):
    run = write_run(tmp_path, {"corpus": {"name": "digits"}})
    run.results_file.unlink()
    card = write_card(recognizer, read_facts("small-student", run, "student", None))
    assert "license" not in metadata_of(card)
    assert "No licence was stated" in card
    assert "has no evaluation" in card
    assert "| digits | not recorded | not recorded |" in card


def test_a_model_outside_of_a_run_has_a_card_too(recognizer):
    card = write_card(recognizer, read_facts("mine", None, None, None))
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "corpora are not recorded" in card


@pytest.mark.parametrize("name", ["a | b", "<script>x</script>", "two\nlines", "---\nlicense: mit", "[x](http://y)"])
def test_names_from_a_runs_files_write_no_markdown_of_their_own(recognizer, name):
    facts = CardFacts(name, None, [SplitResult(name, name, 0.1, 0.1, 3)], [CorpusFacts(name, 1.0, name)])
    card = write_card(recognizer, facts)
    metadata = metadata_of(card)
    assert metadata["model-index"][0]["name"] == " ".join(name.split())
    assert "license" not in metadata
    body = card[card.index("\n# ") :]
    assert "<script" not in body
    assert "](http" not in body
    rows = [line for line in body.splitlines() if line.startswith("|") and "---" not in line]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6, 4}


@pytest.mark.parametrize("value", ["0.1", None, [0.1], {}, True])
@pytest.mark.parametrize("key", ["wer", "cer", "utterances"])
def test_a_result_of_a_received_run_that_is_no_number_is_left_out(recognizer, tmp_path, key, value):
    run = write_run(tmp_path, {})
    evaluated = {"wer": 0.125, "cer": 0.0525, "utterances": 90, key: value}
    write_json(run.results_file, {"models": {"student": {"test": evaluated}}})
    card = write_card(recognizer, read_facts("s", run, "student", None))
    assert ("12.50%" in card) == (key == "utterances")
