"""`chorus evaluate MODEL DATA` as a user meets it: shards and manifests, processes, broken recordings, refusals."""

import json
from pathlib import Path

import pytest
import torch
from damage import change_byte
from made_shards import Said, some_speech, write_set

from data.features import FeaturesConfig
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from launcher.evaluation.recognition import make_batches
from launcher.evaluation.sets import Entry
from launcher.inference.finished_model import write_finished_model
from launcher.run_folder import RunFolder, write_json
from model.encoder import EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig

CONFIG = RecognizerConfig(encoder=EncoderConfig(layers=1, width=16, heads=2, feedforward_width=16, kernel_size=3))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained recogniser: what it writes is noise, but always the same."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    tokenizer = train_tokenizer(["abcde fghij klmno"] * 5, TokenizerConfig(), run.tokenizer)
    write_json(run.features_file, {"mean": [-8.0] * 80, "std": [3.0] * 80})
    torch.manual_seed(1)
    recognizer = Recognizer(CONFIG, 80, tokenizer.vocabulary_size)
    folder = run.path / "student"
    write_finished_model(folder, run, CONFIG, FeaturesConfig(), recognizer.state_dict())
    return folder


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two splits at 8 kHz, where the model has 16; one utterance of test has no transcript."""
    folder = tmp_path / "corpus"
    write_set(folder / "test", [*some_speech(10), Said("silent", text="")])
    write_set(folder / "dev", some_speech(6, "d"))
    return folder


def evaluate(model: Path, *arguments: object) -> int:
    return chorus(["evaluate", str(model), *map(str, arguments)])


def results_of(capsys, model: Path, *arguments: object, code: int = 0) -> dict:
    assert evaluate(model, *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_a_folder_of_shards_is_evaluated_on_its_test_split_in_every_respect(model, shards, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--normalise", "basic", "--calibrate-on", shards, "--robustness", 3, "--out", out]
    assert evaluate(model, *options, shards) == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    (described,) = results["sets"]
    assert described["utterances"] == 11
    assert (described["recognised"], described["without_transcript"], described["broken"]) == (10, 1, 0)
    assert f"{results['rates']['cer']['value']:.2%}" in shown
    assert list(results["groups"]["speaker"]) == ["u-s0", "u-s1", "u-s2", "u-s3"]
    assert results["speed"]["rtf"] > 0
    assert results["speed"]["latency"]["utterances"] == 10
    assert results["calibration"]["temperature"] > 0
    assert results["robustness"][0]["condition"] == "as it is"
    assert all("missing" in row or row["utterances"] == 3 for row in results["robustness"])
    lines = (out / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(row["character_errors"] for row in rows) == results["rates"]["cer"]["errors"]
    page = (out / "evaluation.md").read_text(encoding="utf-8")
    for heading in ("By speaker", "What is confused", "Speed", "Word confidences", "Robustness"):
        assert heading in page


def test_results_are_the_same_in_several_processes(model, shards, capsys):
    alone = results_of(capsys, model, shards)
    together = results_of(capsys, model, "--jobs", 2, shards)
    for key in ("rates", "groups", "confusions", "calibration", "sets"):
        assert alone[key] == together[key], key


def test_a_manifest_gives_what_its_shards_give_and_names_rows_that_cannot_be_used(model, tmp_path, capsys):
    folder = write_set(tmp_path / "test", some_speech(6))
    rows = []
    for said in some_speech(6):
        rows.append({"audio": f"recordings-test/{said.key}.wav", "text": said.text, "split": "test"})
    rows.append({"audio": "recordings-test/nowhere.wav", "text": "a"})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    of_shards = results_of(capsys, model, folder)
    assert evaluate(model, manifest, "--split", "test", "--json") == 3
    printed = capsys.readouterr()
    of_manifest = json.loads(printed.out)
    assert of_manifest["rates"] == of_shards["rates"]
    assert len(of_manifest["rejected"]) == 1
    assert "nowhere.wav" in printed.err
    assert "1 rows of manifests were rejected" in printed.err


def test_a_broken_recording_is_named_and_counted_and_the_others_are_evaluated(model, shards, capsys):
    change_byte(shards / "test", 4, -700)
    assert evaluate(model, shards, "--json") == 3
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results["sets"][0]["broken"] == 1
    assert results["sets"][0]["recognised"] == 9
    (broken,) = results["broken"]
    assert broken["key"] in printed.err
    assert "is broken" in broken["reason"]


def test_several_sets_are_told_apart(model, shards, capsys):
    results = results_of(capsys, model, shards / "test", shards / "dev")
    assert list(results["groups"]["corpus"]) == ["dev", "test"]
    assert [row["label"] for row in results["sets"]] == ["test", "dev"]


def test_normalisation_is_done_to_both_sides(model, tmp_path, capsys):
    folder = write_set(tmp_path / "test", [Said("u1", "Abcde, FGHIJ!"), Said("u2", "…")])
    results = results_of(capsys, model, folder, "--normalise", "basic", "--out", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "utterances.jsonl").read_text().splitlines()]
    by_key = {row["key"]: row for row in rows}
    assert by_key["u1"]["reference"] == "Abcde, FGHIJ!"
    assert by_key["u1"]["normalised_reference"] == "abcde fghij"
    # A reference of which nothing is left counts what is written as insertions.
    assert by_key["u2"]["words"] == 0
    assert results["rates"]["wer"]["length"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{shards}", "--split", "train"], 3, "no split train; there are dev, test"),
        (["{shards}/test", "--split", "dev"], 3, "is itself a split"),
        (["{shards}/nowhere"], 3, "There is no"),
        (["{shards}", "{shards}"], 3, "named twice"),
        (["{shards}", "--jobs", "0"], 2, "--jobs is 0"),
        (["{shards}", "--robustness", "-1"], 2, "--robustness is -1"),
        (["{shards}", "--noise", "x"], 2, "--noise is for --robustness"),
        (["{shards}", "--robustness", "2", "--noise", "{shards}/nowhere"], 3, "is no folder"),
        (["{shards}", "--calibrate-on", "{shards}/test"], 2, "is also what is evaluated"),
        (["{shards}", "--set", "beam=3"], 2, "beam"),
        (["{shards}", "--search", "joint"], 2, "decoder"),
        ([], 2, "is a model of no run"),
    ],
)
def test_what_cannot_be_done_is_one_paragraph(model, shards, capsys, arguments, code, message):
    assert evaluate(model, *[argument.format(shards=shards) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("chorus:") == 1


def test_a_set_without_transcripts_is_refused(model, tmp_path, capsys):
    folder = write_set(tmp_path / "test", [Said("u1", ""), Said("u2", "")])
    assert evaluate(model, folder) == 3
    assert "None of the 2 utterances" in capsys.readouterr().err


def test_options_of_sets_are_refused_for_the_evaluations_of_a_run(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_json(run.state_file, {"format": 1, "recipe": "small", "stages": {}})
    assert chorus(["evaluate", str(run.path), "--jobs", "2", "--normalise", "basic"]) == 2
    assert "--jobs, --normalise is for shards or manifests" in capsys.readouterr().err


def test_batches_hold_every_utterance_once_and_no_more_than_their_audio():
    lengths = [3.0, 50.0, 0.0, 7.0, 7.0, 130.0, 20.0, 1.0, 0.0]
    entries = [Entry(str(number), "a", "", "", seconds) for number, seconds in enumerate(lengths)]
    batches = make_batches(0, entries, range(len(lengths)))
    positions = [position for batch in batches for position in batch.positions]
    assert sorted(positions) == list(range(len(lengths)))
    for batch in batches:
        seconds = [lengths[position] for position in batch.positions]
        assert len(seconds) == 1 or max(seconds) * len(seconds) <= 60
        # One whose length is not known may be of any.
        assert 0.0 not in seconds or len(seconds) == 1
