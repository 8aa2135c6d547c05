"""`chorus pseudo-label` as a user gives it."""

import json

import pytest
from made_shards import some_speech, write_set
from small_models import write_small_model

from data.shards.index import read_index, read_summary
from launcher.cli import main as chorus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "corpus"
    rules = {"version": 4, "normalize": "none", "punctuation": "keep", "language": ""}
    write_set(folder / "train", some_speech(6, "t"), text_rules=rules)
    write_set(folder / "dev", some_speech(2, "d"), text_rules=rules)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("models") / "small", "full")


def run(capsys, *arguments):
    code = chorus(["pseudo-label", *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_set_gets_the_texts_of_a_model_of_chorus_and_says_so(capsys, corpus, model, tmp_path):
    out = tmp_path / "heard"
    code, shown, _ = run(capsys, corpus, "--model", model, "--out", out, "--splits", "train", "--json")
    assert code == 0
    report = json.loads(shown)["splits"]["train"]
    assert report["utterances"] + sum(report["dropped"].values()) == 6
    assert not (out / "dev").exists()
    summary = read_summary(out / "train")
    assert summary["lineage"]["model"]["folder"] == str(model)
    assert len(summary["lineage"]["model"]["sha256"]) == 64
    # Those of the set, which the options leave as they are.
    assert summary["text_rules"]["normalize"] == "none"
    before = {row["key"]: row["text"] for row in read_index(corpus / "train").rows()}
    for row in read_index(out / "train").rows():
        assert row["text"] != before[row["key"]]
    code, shown, _ = run(capsys, corpus, "--model", model, "--out", out, "--splits", "train")
    assert code == 0
    assert "there already" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "seen"),
    [
        (("--max-wer", "0.3"), 2, "Add --compare-with"),
        (("--compare-with", "transcripts"), 2, "Add --max-cer or --max-wer"),
        (("--min-confidence", "1.5"), 2, "--min-confidence is 1.5. Give a number from 0 to 1."),
        (("--batch-seconds", "0"), 2, "--batch-seconds is 0"),
        (("--splits", "test"), 3, "has no split test; it has dev, train"),
        (("--compare-with", "transcripts", "--max-cer", "0"), 3, "No utterance of"),
    ],
)
def test_what_means_nothing_or_leaves_nothing_is_one_sentence(capsys, corpus, model, tmp_path, arguments, code, seen):
    given, _, error = run(capsys, corpus, "--model", model, "--out", tmp_path / "new", *arguments)
    assert given == code
    assert seen in error
    # What was done before it is shown too.
    assert [line for line in error.splitlines() if line.startswith("chorus: ")] == error.splitlines()[-1:]
    assert not (tmp_path / "new" / "train").exists()


def test_a_model_that_is_not_there_is_one_sentence(capsys, corpus, tmp_path):
    code, _, error = run(capsys, corpus, "--model", tmp_path / "nothing", "--out", tmp_path / "new")
    assert code == 4
    assert "holds no finished model" in error
