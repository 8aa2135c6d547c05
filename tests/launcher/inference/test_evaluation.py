"""Finished models: stored, opened, and asked for text and error rates."""

import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from paths import ROOT

from data.audio import Clip, Utterance
from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.errors import DataError
from data.features import FeaturesConfig
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from launcher.errors import CheckpointError, ConfigError
from launcher.inference import evaluation_tracking
from launcher.inference.evaluation import evaluate_model
from launcher.inference.evaluation_tracking import examples_table, track_evaluation
from launcher.inference.finished_model import FinishedModel, write_finished_model
from launcher.inference.transcriber import Transcriber, check_recording
from launcher.recipe import load_recipe
from launcher.recipe.search import read_search
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.stages.context import StageContext
from launcher.stages.results import merge_results
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.search import transducer_greedy
from model.transducer import TransducerConfig

CONFIG = RecognizerConfig(encoder=EncoderConfig(layers=2, width=16, heads=2, feedforward_width=16, kernel_size=3))
DECODER = DecoderConfig(layers=1, heads=2, feedforward_width=16, right_to_left_layers=1)
SEARCHES = {
    "greedy": {},
    "prefix_beam": {},
    "attention_beam": {"length_power": 0.0},
    "rescoring": {"reverse_weight": 0.3},
    "joint": {"ctc_weight": 0.5},
}


@pytest.fixture(scope="module")
def utterances():
    selected = CORPORA["aelita"].select(AelitaConfig(), seed=1).utterances
    return [utterance for utterance in selected if utterance.split == "dev"][:5]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, utterances) -> Path:
    return untrained(RunFolder(tmp_path_factory.mktemp("run")), utterances, CONFIG)


@pytest.fixture(scope="module")
def two_way_folder(tmp_path_factory, utterances) -> Path:
    return untrained(
        RunFolder(tmp_path_factory.mktemp("two-way")), utterances, CONFIG.model_copy(update={"decoder": DECODER})
    )


def untrained(run: RunFolder, utterances, config: RecognizerConfig) -> Path:
    """An untrained model: what it writes is noise, but always the same."""
    tokenizer = train_tokenizer([utterance.text for utterance in utterances], TokenizerConfig(), run.tokenizer)
    write_json(run.features_file, {"mean": [-8.0] * 80, "std": [3.0] * 80})
    torch.manual_seed(0)
    recognizer = Recognizer(config, 80, tokenizer.vocabulary_size)
    folder = run.stage("student").model
    folder.parent.mkdir()
    write_finished_model(folder, run, config, FeaturesConfig(), recognizer.state_dict())
    return folder


def transcribe(folder: Path, paths: list[Path], search=None, on_text=None) -> list[dict]:
    transcriber = Transcriber.load(folder, search)
    return [transcriber.transcribe(path, on_text) for path in paths]


def noise(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate_hz), channels))


def test_a_model_folder_needs_nothing_of_its_run(model_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(model_folder, moved)
    wave = noise(2.0, 16000)[:, 0].astype(np.float32)
    assert FinishedModel.load(moved).recognise([wave]) == FinishedModel.load(model_folder).recognise([wave])


def test_the_transducer_of_a_model_writes_the_text_when_the_search_asks_for_it(utterances, tmp_path):
    config = CONFIG.model_copy(update={"transducer": TransducerConfig(width=16)})
    folder = untrained(RunFolder(tmp_path), utterances, config)
    wave = noise(1.0, 16000)[:, 0].astype(np.float32)

    def search(**values) -> FinishedModel:
        return FinishedModel.load(folder, read_search({"kind": "transducer", **values}, "test"))

    model = search(symbols_per_frame=2)
    encoded = model.encode([wave]).encoder
    with torch.inference_mode():
        (expected,) = transducer_greedy(model.recognizer.transducer, encoded.frames_BSD, encoded.lengths_B, 2)
    assert model.recognise([wave]) == [model.tokenizer.decode(expected.tokens)] != [""]
    assert model.recognise([wave]) != FinishedModel.load(folder).recognise([wave])
    assert all(0 < confidence <= 1 for confidence in expected.confidences)
    assert len(expected.confidences) == len(expected.tokens)
    assert len(search(symbols_per_frame=1).recognise([wave])[0]) < len(model.recognise([wave])[0])


def test_a_recording_is_recognised_the_same_alone_and_among_others(model_folder):
    model = FinishedModel.load(model_folder)
    waves = [noise(seconds, 16000)[:, 0].astype(np.float32) for seconds in (2.0, 0.8, 1.3)]
    assert model.recognise(waves) == [model.recognise([wave])[0] for wave in waves]


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels"), [("a.wav", 8000, 1), ("b.flac", 44100, 2), ("c.ogg", 16000, 1)]
)
def test_any_format_and_sample_rate_is_transcribed(model_folder, tmp_path, name, rate_hz, channels):
    soundfile.write(tmp_path / name, noise(1.5, rate_hz, channels), rate_hz)
    (found,) = transcribe(model_folder, [tmp_path / name])
    assert isinstance(found["text"], str)


def test_a_recording_shorter_than_a_window_has_no_text(model_folder, tmp_path):
    soundfile.write(tmp_path / "short.wav", noise(0.01, 16000), 16000)
    (found,) = transcribe(model_folder, [tmp_path / "short.wav"])
    assert found["text"] == ""


def test_a_missing_or_broken_recording_is_named(model_folder, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.wav"):
        transcribe(model_folder, [tmp_path / "nothing.wav"])
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(DataError, match=r"text\.wav"):
        transcribe(model_folder, [tmp_path / "text.wav"])


@pytest.mark.parametrize("part", ["model.safetensors", "model.json", "features.json", "tokenizer"])
def test_a_model_folder_that_lacks_a_part_is_named(model_folder, tmp_path, part):
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises((CheckpointError, DataError), match=str(copy)):
        FinishedModel.load(copy)


def test_utterances_that_training_would_leave_out_are_scored(model_folder, tmp_path):
    # Longer and shorter than any in training, and a text that no alignment of its length can write.
    utterances = []
    for key, seconds, text in (("long", 31.0, "ааа"), ("short", 0.03, "а"), ("dense", 0.5, "а" * 99)):
        soundfile.write(tmp_path / f"{key}.wav", noise(seconds, 16000), 16000)
        utterances.append(Utterance(key, (Clip(tmp_path / f"{key}.wav"),), text, "test"))
    write_split(utterances, tmp_path / "test", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    found = evaluate_model(FinishedModel.load(model_folder), tmp_path / "test", "test", lambda done: None)
    assert found["test"]["utterances"] == 3
    assert sorted(example["key"] for example in found["hypotheses"]) == ["dense", "long", "short"]


def test_error_rates_are_jiwers_over_the_whole_split(model_folder, utterances, tmp_path):
    write_split(utterances, tmp_path / "dev", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    seen = []
    found = evaluate_model(FinishedModel.load(model_folder), tmp_path / "dev", "dev", seen.append)
    references = [example["reference"] for example in found["hypotheses"]]
    hypotheses = [example["hypothesis"] for example in found["hypotheses"]]
    assert sorted(references) == sorted(utterance.text for utterance in utterances)
    assert found["dev"]["cer"] == pytest.approx(jiwer.cer(references, hypotheses))
    assert found["dev"]["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert found["dev"]["utterances"] == seen[-1] == len(utterances)
    assert found["encoder_parameters"] == sum(
        tensor.numel() for tensor in FinishedModel.load(model_folder).recognizer.encoder.parameters()
    )
    assert 0 < found["encoder_operations_per_s"] < found["operations_per_s"]
    json.dumps(found)


@pytest.mark.parametrize("damage", ["no samples", "other bytes", "a claim of more"])
def test_a_broken_utterance_is_named_and_counted_and_the_others_are_scored(
    model_folder, utterances, tmp_path, caplog, damage
):
    folder = tmp_path / "dev"
    write_split(utterances, folder, sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    index = read_index(folder)
    broken = 2
    key = list(index.keys())[broken]
    if damage == "other bytes":
        shard = folder / index.shard_name(broken)
        content = bytearray(shard.read_bytes())
        offset = int(index.offset[broken])
        content[offset + 2000 : offset + 2100] = bytes(100)
        shard.write_bytes(content)
    else:
        columns = dict(np.load(folder / "index.npz"))
        columns["samples"][broken] = 0 if damage == "no samples" else 2**27
        np.savez(folder / "index.npz", **columns)

    evaluated = evaluate_model(FinishedModel.load(model_folder), folder, "dev", lambda done: None)
    assert evaluated["dev"]["utterances"] == len(utterances) - 1
    assert evaluated["dev"]["quarantined"] == 1
    assert key not in [row["key"] for row in evaluated["hypotheses"]]
    assert f"Skipped broken utterance 1 of {len(utterances)}: Utterance {key} at offset" in caplog.text
    if damage == "no samples":
        assert "preparing the corpus again leaves such recordings out" in caplog.text


def test_a_split_that_is_mostly_broken_is_not_scored(model_folder, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.3, 16000), 16000)
    utterances = [Utterance(f"u{number:02}", (Clip(tmp_path / "a.wav"),), "а", "test") for number in range(12)]
    write_split(utterances, tmp_path / "test", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    path = tmp_path / "test" / "index.npz"
    columns = dict(np.load(path))
    columns["samples"][:10] += 1
    np.savez(path, **columns)
    model = FinishedModel.load(model_folder)
    with pytest.raises(DataError, match=r"10 of the 12 utterances .* more than the 1.0% .* The last one: Utterance u"):
        evaluate_model(model, tmp_path / "test", "test", lambda done: None)


def unigrams(path: Path, words: dict[str, float]) -> Path:
    """An ARPA file of words with their log10 probabilities."""
    lines = [f"{score}\t{word}" for word, score in words.items()]
    path.write_text(f"\\data\\\nngram 1={len(words)}\n\n\\1-grams:\n" + "\n".join(lines) + "\n\n\\end\\\n")
    return path


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_model_folder_is_read_with_any_search(two_way_folder, tmp_path, kind):
    soundfile.write(tmp_path / "a.wav", noise(1.5, 16000), 16000)
    values = {"kind": kind, **SEARCHES[kind]} | ({"beam": 4, "n_best": 3} if kind != "greedy" else {})
    (found,) = transcribe(two_way_folder, [tmp_path / "a.wav"], read_search(values, "test"))
    assert found["text"] == found["n_best"][0]["text"]
    assert len(found["n_best"]) == (1 if kind == "greedy" else 3)
    for row in found["n_best"]:
        starts = [token["start_s"] for token in row["tokens"]]
        assert starts == sorted(starts)
        assert all(0.0 <= start < 1.5 for start in starts)
        assert all(0.0 <= token["confidence"] <= 1.0 for token in row["tokens"])
    scores = [row["score"] for row in found["n_best"]]
    assert scores == sorted(scores, reverse=True)
    json.dumps(found)


def test_any_search_finds_the_same_alone_and_among_others(two_way_folder):
    waves = [noise(seconds, 16000)[:, 0].astype(np.float32) for seconds in (2.0, 0.8, 1.3)]
    for kind, values in SEARCHES.items():
        model = FinishedModel.load(two_way_folder, read_search({"kind": kind, **values}, "test"))
        assert model.recognise(waves) == [model.recognise([wave])[0] for wave in waves], kind


@pytest.fixture(scope="module")
def streaming_folder(tmp_path_factory, utterances) -> Path:
    causal = CONFIG.encoder.model_copy(update={"causal_convolution": True})
    run = RunFolder(tmp_path_factory.mktemp("streaming"))
    return untrained(run, utterances, CONFIG.model_copy(update={"encoder": causal, "decoder": DECODER}))


def test_a_chunk_changes_what_the_encoder_sees_and_so_what_is_found(streaming_folder):
    wave = noise(2.0, 16000)[:, 0].astype(np.float32)
    found = {}
    for name, chunk in {"all": None, "8": {"frames": 8}, "2": {"frames": 2, "left_chunks": 1}}.items():
        search = read_search({"kind": "greedy", "chunk": chunk}, "test")
        ((found[name],),) = FinishedModel.load(streaming_folder, search).hypotheses([wave])
    assert len({hypothesis.score for hypothesis in found.values()}) == 3


@pytest.mark.parametrize("kind", ["greedy", "prefix_beam"])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 2.03])
def test_a_recording_that_arrives_in_pieces_is_recognised_as_the_whole(streaming_folder, tmp_path, kind, seconds):
    recording = tmp_path / "a.wav"
    soundfile.write(recording, noise(seconds, 16000), 16000)
    search = read_search({"kind": kind, "chunk": {"frames": 3, "left_chunks": 2}}, "test")
    texts = []
    (whole,) = transcribe(streaming_folder, [recording], search)
    (pieces,) = transcribe(streaming_folder, [recording], search, lambda heard_s, text: texts.append((heard_s, text)))
    assert pieces["text"] == whole["text"]
    for one, other in zip(pieces["n_best"], whole["n_best"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert [token["start_s"] for token in one["tokens"]] == [token["start_s"] for token in other["tokens"]]
    assert [round(heard_s, 2) for heard_s, _ in texts] == [
        round(min(seconds, 0.12 * n), 2) for n in range(1, len(texts) + 1)
    ]
    if seconds == 2.03:
        assert texts[3][1], "there was no text before the end"
        assert len(texts) == 17


def test_a_search_that_needs_the_whole_recording_does_not_read_chunk_by_chunk(streaming_folder, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.5, 16000), 16000)
    for values, words in (
        ({"kind": "greedy"}, "the search has none"),
        ({"kind": "joint", "chunk": {"frames": 4}}, "needs the whole recording"),
    ):
        with pytest.raises(ConfigError, match=words):
            transcribe(streaming_folder, [tmp_path / "a.wav"], read_search(values, "test"), lambda *_: None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_hotword(model_folder, tmp_path, encoding):
    path = tmp_path / "hotwords.txt"
    path.write_text("да\r\n\n", encoding=encoding)
    search = read_search({"kind": "prefix_beam", "hotwords": {"path": path}}, "test")
    FinishedModel.load(model_folder, search)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_hotwords_is_refused(model_folder, tmp_path, content):
    path = tmp_path / "hotwords.txt"
    path.write_bytes(content)
    search = read_search({"kind": "prefix_beam", "hotwords": {"path": path}}, "test")
    with pytest.raises(DataError, match="has no phrase in it"):
        FinishedModel.load(model_folder, search)


def test_folders_and_streams_are_told_from_recordings_that_are_missing(model_folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    seen = {
        tmp_path: "is a folder",
        Path("-"): "is a stream",
        tmp_path / "pipe": "is a stream",
        Path("a"): "There is no",
    }
    for path, words in seen.items():
        with pytest.raises(DataError, match=words):
            transcribe(model_folder, [path])


NAMES = ["my talk.wav", "talk.v1.wav", "запись [1] (2).wav", "a'b\"c.wav", "-.wav", "यह.wav", "\udcff.wav"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_may_have_any_name(model_folder, tmp_path, name):
    soundfile.write(tmp_path / "a.wav", noise(0.3, 16000), 16000)
    (tmp_path / "a.wav").rename(tmp_path / name)
    (row,) = transcribe(model_folder, [tmp_path / name])
    assert row["audio"] == str(tmp_path / name)


@pytest.mark.parametrize("as_json", [False, True])
def test_one_bad_recording_loses_no_other(model_folder, tmp_path, capsys, as_json):
    soundfile.write(tmp_path / "good.wav", noise(0.3, 16000), 16000)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    names = [str(tmp_path / name) for name in ("good.wav", "bad.wav", "gone.wav", "n" * 300 + ".wav", "good.wav")]
    options = ["--json"] if as_json else []
    assert chorus(["transcribe", str(model_folder), *names, *options]) == 3
    captured = capsys.readouterr()
    if as_json:
        assert [row["audio"] for row in json.loads(captured.out)] == [names[0], names[4]]
    else:
        assert [line.split("\t")[0] for line in captured.out.splitlines()] == [names[0], names[4]]
    assert "bad.wav" in captured.err
    assert "There is no recording at" in captured.err
    assert "3 of 5 recordings could not be recognised" in captured.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing-*.wav", "No recording matches {path}, and none is called so"),
        ("[ab]?.wav", "No recording matches {path}"),
        ("dangling.wav", "{path} is a link to moved.wav, where nothing is"),
        ("gone.wav", "There is no recording at {path}"),
    ],
)
def test_what_is_not_there_is_said_as_it_was_asked_for(tmp_path, name, message):
    (tmp_path / "dangling.wav").symlink_to("moved.wav")
    path = tmp_path / name
    with pytest.raises(DataError) as raised:
        check_recording(path)
    assert str(raised.value).startswith(message.format(path=path))


SOUNDLESS = {
    "none.wav": (np.zeros(0), 16000, "holds no samples"),
    "one.wav": (np.full(1, 0.5), 48000, "holds no sample at 16000 Hz"),
    "silent.wav": (np.zeros(16000), 16000, "digital silence"),
    "opposite.wav": (np.outer(noise(0.5, 16000), [1, -1]), 16000, "cancel each other out"),
}


def test_recordings_without_sound_are_named_and_the_others_recognised(model_folder, tmp_path, capsys):
    for name, (samples, rate_hz, _) in SOUNDLESS.items():
        soundfile.write(tmp_path / name, samples, rate_hz)
    soundfile.write(tmp_path / "good.wav", noise(0.3, 16000), 16000)
    content = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    names = [*SOUNDLESS, "cut.wav", "good.wav"]
    assert chorus(["transcribe", str(model_folder), *(str(tmp_path / name) for name in names)]) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'good.wav'}\t")
    lines = captured.err.splitlines()
    for name, reason in (*((name, case[2]) for name, case in SOUNDLESS.items()), ("cut.wav", "breaks off")):
        (line,) = [line for line in lines if line.startswith(f"chorus: {tmp_path / name} cannot be recognised: ")]
        assert reason in line


def test_a_recording_shorter_than_a_window_is_said_to_have_no_text(model_folder, tmp_path, caplog):
    soundfile.write(tmp_path / "short.wav", noise(0.01, 16000), 16000)
    (row,) = transcribe(model_folder, [tmp_path / "short.wav"])
    assert row["text"] == ""
    assert "short.wav has no text: it is shorter than 0.025 s" in caplog.text


def test_a_language_model_and_hotwords_change_what_is_written(two_way_folder, tmp_path):
    wave = noise(1.5, 16000)[:, 0].astype(np.float32)
    tokenizer = FinishedModel.load(two_way_folder).tokenizer
    letter, other = (piece for piece in tokenizer.pieces if piece in "ао")
    scores = {"</s>": -1.0, **dict.fromkeys(tokenizer.pieces[4:], -9.0), letter: -0.1}
    arpa = unigrams(tmp_path / "letters.arpa", scores)
    model = {"path": arpa, "unit": "token", "weight": 5.0}
    # An untrained model has no favourites: every token must be a candidate.
    beam = {"kind": "prefix_beam", "candidates": 100}
    heard = read_search({**beam, "language_model": model, "length_bonus": 6.0}, "test")
    assert set(FinishedModel.load(two_way_folder, heard).recognise([wave])[0]) == {letter}
    words = tmp_path / "hotwords.txt"
    words.write_text(f"{other}{letter}\n\n")
    expecting = read_search({**beam, "hotwords": {"path": words, "bonus": 20.0}}, "test")
    assert f"{other}{letter}" in FinishedModel.load(two_way_folder, expecting).recognise([wave])[0].split()


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"kind": "joint"}, ConfigError, "needs an attention decoder"),
        ({"kind": "greedy", "chunk": {"frames": 4}}, ConfigError, "chunk is of 4 frames"),
        ({"kind": "prefix_beam", "language_model": {"path": "/nowhere/lm.arpa"}}, DataError, "language_model.path is"),
        ({"kind": "prefix_beam", "hotwords": {"phrases": ["qqq"]}}, DataError, "hotword 'qqq'"),
    ],
)
def test_a_search_that_does_not_go_with_the_model_is_refused(model_folder, values, error, words):
    with pytest.raises(error, match=words):
        FinishedModel.load(model_folder, read_search(values, "test"))


def test_files_that_are_no_language_model_of_the_model_are_refused(model_folder, tmp_path):
    broken = tmp_path / "lm.arpa"
    broken.write_text("hello")
    search = {"kind": "prefix_beam", "language_model": {"path": broken}}
    with pytest.raises(DataError, match="no whole ARPA file"):
        FinishedModel.load(model_folder, read_search(search, "test"))
    search["language_model"] = {"path": unigrams(broken, {"word": -1.0}), "unit": "token"}
    with pytest.raises(DataError, match="knows none of the tokenizer's tokens"):
        FinishedModel.load(model_folder, read_search(search, "test"))


def test_an_evaluation_says_how_it_searched(two_way_folder, utterances, tmp_path):
    write_split(utterances, tmp_path / "dev", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    search = read_search({"kind": "rescoring", "beam": 3}, "test")
    model = FinishedModel.load(two_way_folder, search)
    found = evaluate_model(model, tmp_path / "dev", "dev", lambda done: None)
    assert found["dev"]["search"] == search.model_dump(mode="json")
    references = [example["reference"] for example in found["hypotheses"]]
    assert found["dev"]["cer"] == jiwer.cer(references, [example["hypothesis"] for example in found["hypotheses"]])


def test_evaluations_of_one_split_stand_side_by_side_in_the_results(tmp_path):
    path = tmp_path / "two.yaml"
    mini = (ROOT / "launcher/recipes/mini.yaml").read_text()
    with_beam = "  - {name: with-beam, kind: evaluate, models: [student], search: {kind: joint}}\n\ncluster:"
    path.write_text(mini.replace("cluster:", with_beam))
    run = RunFolder(tmp_path / "run")
    for name, models, cer in (("evaluation", ("teacher", "student"), 0.2), ("with-beam", ("student",), 0.1)):
        found = {model: {"parameters": 7, "test": {"cer": cer}, "examples": []} for model in models}
        write_json(run.stage(name).evaluation_file, {"models": found})
    merge_results(load_recipe(path), run)
    assert read_json(run.results_file)["models"] == {
        "teacher": {"parameters": 7, "test": {"cer": 0.2}},
        "student": {"parameters": 7, "test": {"cer": 0.2}, "test/with-beam": {"cer": 0.1}},
    }


def test_examples_are_shown_with_their_audio_and_their_errors(utterances, tmp_path):
    write_split(utterances, tmp_path / "dev", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    reader = ShardReader(read_index(tmp_path / "dev"))
    spoken = [reader.read(position) for position in (3, 0)]
    examples = [{"key": one.key, "reference": "раз два", "hypothesis": "раз да"} for one in spoken]
    table = examples_table("examples/student", examples, {"": tmp_path / "dev"})
    assert table.columns[-4:] == ("word_errors", "words", "character_errors", "characters")
    for row, example in zip(table.rows, spoken, strict=True):
        waveform, rate_hz = soundfile.read(io.BytesIO(row[1].flac), dtype="float32")
        assert (row[0], rate_hz) == (example.key, 16000)
        assert np.abs(waveform - example.waveform).max() < 2**-15
        assert row[4:] == [1, 2, 1, 7]


@pytest.mark.parametrize("trouble", ["hangs", "raises", "shards are gone"])
def test_an_evaluation_waits_for_its_tracking_no_longer_than_stated_and_never_fails_of_it(
    tmp_path, monkeypatch, trouble
):
    released = threading.Event()

    def init(**_):
        if trouble == "raises":
            raise RuntimeError("the W&B library broke")
        released.wait(30)

    if trouble != "shards are gone":
        nothing = lambda **_: None  # noqa: E731
        fake = SimpleNamespace(Settings=nothing, setup=nothing, init=init, teardown=lambda: None)
        monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(evaluation_tracking, "TIMEOUT_S", 2.0 if trouble == "hangs" else 30.0)
    recipe, run = load_recipe("mini"), RunFolder(tmp_path / "run")
    stage = recipe.stage("evaluation")
    model = {"parameters": 9, "test": {"wer": 0.5}, "examples": [{"key": "a", "reference": "б", "hypothesis": "в"}]}
    start_s = time.perf_counter()
    track_evaluation(StageContext(recipe, run, stage), {"models": {"student": model}})
    assert time.perf_counter() - start_s < (3 if trouble == "hangs" else 30)
    log = (run.stage("evaluation").logs / "wandb.log").read_text()
    assert {"hangs": "did not finish", "raises": "library broke", "shards are gone": "no shards at"}[trouble] in log
    released.set()
