"""`chorus transcribe` as a user meets it: many inputs, formats and processes, long recordings, standard input."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import psutil
import pytest
import soundfile
import torch

from data.features import FeaturesConfig
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from launcher.commands import transcription_progress
from launcher.commands.transcription_progress import TranscriptionProgress
from launcher.errors import CheckpointError
from launcher.export.hub_folder import write_hub_folder
from launcher.export.model_files import open_model_files
from launcher.inference import speech_detection, transcriber, transcription_pool, worker_pool
from launcher.inference.finished_model import write_finished_model
from launcher.inference.recording_sources import find_recordings
from launcher.inference.transcription_pool import TranscriptionPool, WorkerSettings
from launcher.run_folder import RunFolder, write_json
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

RATE_HZ = 16000
CONFIG = RecognizerConfig(
    encoder=EncoderConfig(layers=2, width=16, heads=2, feedforward_width=16, kernel_size=3, causal_convolution=True),
    decoder=DecoderConfig(layers=1, heads=2, feedforward_width=16),
    transducer=TransducerConfig(width=16),
)
SEARCHES = ["greedy", "prefix_beam", "rescoring", "attention_beam", "joint", "transducer"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained recogniser with every output: what it writes is noise, but always the same."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    tokenizer = train_tokenizer(["да нет привет как дела"] * 5, TokenizerConfig(), run.tokenizer)
    write_json(run.features_file, {"mean": [-8.0] * 80, "std": [3.0] * 80})
    torch.manual_seed(0)
    recognizer = Recognizer(CONFIG, 80, tokenizer.vocabulary_size)
    folder = run.stage("student").model
    folder.parent.mkdir()
    write_finished_model(folder, run, CONFIG, FeaturesConfig(), recognizer.state_dict())
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    generator = np.random.default_rng(0)
    for name, seconds in (("a.wav", 1.5), ("b.flac", 0.8), ("deep/c.wav", 2.0)):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, 0.1 * generator.standard_normal(round(seconds * RATE_HZ)), RATE_HZ)
    (folder / "broken.wav").write_bytes(b"no audio")
    return folder


def transcribe(model: Path, *arguments: object) -> int:
    return chorus(["transcribe", str(model), *map(str, arguments)])


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_search_gives_words_with_times_and_confidences(model, talks, capsys, kind):
    options = ["--search", kind, "--json"]
    if kind in ("attention_beam", "joint"):
        # An untrained decoder ends at once; a bonus for every token has it write some.
        options += ["--set", "length_bonus=2"]
    assert transcribe(model, talks / "deep/c.wav", *options) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["seconds"] == 2.0
    best = row["n_best"][0]
    assert " ".join(word["word"] for word in best["words"]) == " ".join(row["text"].split())
    assert best["words"], "an untrained model that writes nothing shows nothing"
    for word in best["words"]:
        assert 0 <= word["start_s"] < word["end_s"] <= 2.0
        assert 0 < word["confidence"] <= 1
    starts = [word["start_s"] for word in best["words"]]
    assert starts == sorted(starts)


def test_a_folder_is_transcribed_in_order_and_its_broken_file_is_named_and_counted(model, talks, capsys):
    assert transcribe(model, talks) == 3
    captured = capsys.readouterr()
    names = [line.split("\t")[0] for line in captured.out.splitlines()]
    assert names == [str(talks / name) for name in ("a.wav", "b.flac", "deep/c.wav")]
    assert f"chorus: {talks / 'broken.wav'} cannot be recognised" in captured.err
    assert "1 of 4 recordings could not be recognised" in captured.err


def test_several_processes_give_the_same_in_the_same_order(model, talks, capfd):
    arguments = [talks / "deep/c.wav", talks / "broken.wav", talks / "a.wav", talks / "gone.wav", talks / "b.flac"]
    assert transcribe(model, *arguments, "--json") == 3
    alone = capfd.readouterr()
    assert transcribe(model, *arguments, "--json", "--jobs", "2") == 3
    together = capfd.readouterr()
    assert json.loads(together.out) == json.loads(alone.out)
    assert together.err.splitlines()[-3:] == alone.err.splitlines()[-3:]


FAKE_WORKER = """
import json, os, signal, sys, time
settings = json.loads(sys.stdin.readline())
for line in sys.stdin:
    name = json.loads(line)["name"]
    print(json.dumps({"kind": "progress", "done": 1.0, "total": 2.0}), flush=True)
    if settings["model"] == "torn":
        print(json.dumps({"kind": "refused", "error": "CheckpointError", "reason": "the model is torn"}), flush=True)
    elif name == "killer.wav":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "bad.wav":
        print(json.dumps({"kind": "error", "reason": "bad.wav is no audio"}), flush=True)
    else:
        time.sleep(0.3 if name == "slow.wav" else 0.0)
        print(json.dumps({"kind": "result", "result": {"audio": name, "text": "да"}}), flush=True)
"""


@pytest.fixture
def fake_workers(tmp_path, monkeypatch):
    """Processes that speak as real ones do, and start at once."""
    (tmp_path / "fake_worker.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(transcription_pool, "WORKER_MODULE", "fake_worker")
    monkeypatch.setattr(worker_pool, "PACKAGES", tmp_path)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_outcomes_come_in_order_and_a_process_that_is_lost_loses_one_recording(fake_workers, jobs):
    names = ["slow.wav", "killer.wav", "a.wav", "bad.wav", "killer.wav", "killer.wav", "b.wav", "c.wav"]
    settings = WorkerSettings("model", {}, "cpu", "auto", "fp32")
    progress = []
    with TranscriptionPool(settings, jobs) as pool:
        outcomes = list(pool.transcribe(find_recordings(names), lambda *values: progress.append(values)))
    for name, outcome in zip(names, outcomes, strict=True):
        if name == "killer.wav":
            assert "killer.wav cannot be recognised: the process that did so was ended by signal 9" in str(outcome)
        elif name == "bad.wav":
            assert str(outcome) == "bad.wav is no audio"
        else:
            assert outcome == {"audio": name, "text": "да"}
    assert sorted(number for number, _, _ in progress) == list(range(8))
    assert not [child for child in psutil.Process().children() if "fake_worker" in " ".join(child.cmdline())]


def test_what_the_processes_say_of_the_model_is_raised_once(fake_workers):
    settings = WorkerSettings("torn", {}, "cpu", "auto", "fp32")
    with TranscriptionPool(settings, 2) as pool, pytest.raises(CheckpointError, match="the model is torn"):
        list(pool.transcribe(find_recordings(["a.wav", "b.wav", "c.wav"]), lambda *_: None))


def test_a_folder_in_the_layout_of_hugging_face_gives_what_the_model_gives(model, talks, tmp_path, capsys):
    (tmp_path / "hub").mkdir()
    write_hub_folder(tmp_path / "hub", open_model_files(model), "")
    rows = []
    for folder in (model, tmp_path / "hub"):
        assert transcribe(folder, talks / "deep/c.wav", "--json", "--search", "joint", "--set", "length_bonus=2") == 0
        rows += json.loads(capsys.readouterr().out)
    assert rows[0] == rows[1]


def test_files_of_several_formats_keep_the_structure_of_the_folder(model, talks, tmp_path, capsys):
    formats = [word for name in ("text", "json", "srt", "vtt", "ctm", "textgrid") for word in ("--format", name)]
    assert transcribe(model, talks, "--out", tmp_path / "out", *formats) == 3
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    suffixes = ("TextGrid", "ctm", "json", "srt", "txt", "vtt")
    assert written == [f"{name}.{suffix}" for name in ("a", "b", "deep/c") for suffix in suffixes]
    assert capsys.readouterr().out.count("\n") == 18
    row = json.loads((tmp_path / "out" / "deep/c.json").read_text("utf-8"))
    assert row["audio"] == str(talks / "deep/c.wav")
    assert (tmp_path / "out" / "deep/c.txt").read_text("utf-8") == f"{row['text']}\n"


def test_two_recordings_of_one_name_are_told_apart_by_their_endings(model, talks, tmp_path, capsys):
    for name in ("x.wav", "x.flac"):
        soundfile.write(tmp_path / name, 0.1 * np.ones(8000) * np.sin(np.arange(8000)), RATE_HZ)
    assert transcribe(model, tmp_path / "x.wav", tmp_path / "x.flac", "--format", "srt", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.flac.srt", "x.wav.srt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "srt"], "srt holds one recording, and 2 are named. Give --out DIR"),
        (["--format", "textgrid"], "textgrid holds one recording"),
        (["--format", "text", "--format", "ctm"], "Standard output takes one format"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--jobs", "2", "--stream"], "--stream shows one recording"),
        (["--dtype", "int8", "--device", "cuda"], "sees none here"),
    ],
)
def test_options_that_do_not_go_together_are_refused(model, talks, capsys, monkeypatch, options, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert transcribe(model, talks / "a.wav", talks / "b.flac", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_recordings_of_equal_names_from_two_folders_are_not_written_over_each_other(model, talks, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.wav").write_bytes((talks / "a.wav").read_bytes())
    arguments = [talks / "a.wav", tmp_path / "other" / "a.wav", "--format", "srt", "--out", tmp_path / "out"]
    assert transcribe(model, *arguments) == 2
    assert "would both be written to a" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recording_from_standard_input_and_from_a_url_is_that_of_the_file(model, talks, capsys, monkeypatch):
    content = (talks / "a.wav").read_bytes()
    with fsspec.open("memory://talks/a.wav", "wb") as file:
        file.write(content)
    texts = []
    for source in (talks / "a.wav", "-", "memory://talks/a.wav"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert transcribe(model, source, "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["audio"] == str(source)
        texts.append(row["text"])
    assert texts[0] == texts[1] == texts[2]


def test_broken_bytes_from_standard_input_are_called_that(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"garbage")))
    assert transcribe(model, "-") == 3
    error = capsys.readouterr().err
    assert error.startswith("chorus: - cannot be recognised: - ")
    assert "/tmp" not in error


def test_a_long_recording_is_cut_and_joined(model, tmp_path, capsys):
    speech = 0.1 * np.random.default_rng(0).standard_normal(70 * RATE_HZ)
    soundfile.write(tmp_path / "long.wav", speech, RATE_HZ)
    assert transcribe(model, tmp_path / "long.wav", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["segments"]) >= 3
    assert row["segments"][0]["start_s"] == 0
    assert row["segments"][-1]["end_s"] == row["seconds"] == 70.0
    ends = [segment["end_s"] for segment in row["segments"][:-1]]
    assert ends == [segment["start_s"] for segment in row["segments"][1:]]
    assert transcribe(model, tmp_path / "long.wav", "--json", "--cut", "never") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "segments" not in row


def test_without_a_detector_a_long_recording_is_whole_and_one_that_is_too_long_ends_no_other(
    model, talks, tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    speech_detection.load_detector.cache_clear()
    monkeypatch.setattr(transcriber, "CUT_ABOVE_S", 1.0)
    monkeypatch.setattr(transcriber, "MAX_WHOLE_S", 1.9)
    # 1.5, 2.0 and 0.8 s.
    assert transcribe(model, talks / "a.wav", talks / "deep/c.wav", talks / "b.flac", "--json") == 3
    captured = capsys.readouterr()
    assert [row["audio"] for row in json.loads(captured.out)] == [str(talks / "a.wav"), str(talks / "b.flac")]
    assert f"{talks / 'a.wav'} is recognised in one piece" in caplog.text
    assert f"{talks / 'deep/c.wav'} cannot be recognised: it lasts 2 s." in captured.err
    assert "pip install 'chorus-asr[vad]'" in captured.err
    assert transcribe(model, talks / "a.wav", "--cut", "always") == 2
    speech_detection.load_detector.cache_clear()


@pytest.mark.parametrize("kind", ["greedy", "prefix_beam"])
def test_a_long_recording_with_chunks_is_read_chunk_by_chunk_and_gives_what_the_whole_gives(
    model, tmp_path, capsys, monkeypatch, kind
):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(3 * RATE_HZ), RATE_HZ)
    options = ["--chunk", "4", "--left-chunks", "2", "--search", kind, "--json"]
    rows = []
    for limit_s in (60.0, 1.0):
        monkeypatch.setattr(transcriber, "CUT_ABOVE_S", limit_s)
        assert transcribe(model, tmp_path / "a.wav", *options) == 0
        rows += json.loads(capsys.readouterr().out)
    assert rows[0]["text"] == rows[1]["text"]
    for word, other in zip(rows[0]["n_best"][0]["words"], rows[1]["n_best"][0]["words"], strict=True):
        assert (word["word"], word["start_s"], word["end_s"]) == (other["word"], other["start_s"], other["end_s"])


@pytest.mark.parametrize("is_terminal", [False, True])
def test_long_work_shows_how_far_it_is_and_leaves_the_line_clear(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    now_s = [0.0]
    monkeypatch.setattr(transcription_progress.time, "monotonic", lambda: now_s[0])
    with TranscriptionProgress(["a.wav", "b.wav"]) as progress:
        for second in range(31):
            now_s[0] = float(second)
            progress.update(second // 16, 60.0 * (second % 16), 960.0)
    error = capsys.readouterr().err
    if is_terminal:
        assert error.count("\n") == 0
        assert error.endswith("\r\x1b[K")
        assert "recording 2 of 2, b.wav: 14 min of 16 min" in error
    else:
        assert error.splitlines() == [
            "chorus: recording 1 of 2, a.wav: 10 min of 16 min, 60 s of audio per s",
            "chorus: recording 2 of 2, b.wav: 4 min of 16 min, 57 s of audio per s",
            "chorus: recording 2 of 2, b.wav: 14 min of 16 min, 58 s of audio per s",
        ]


def test_short_work_shows_nothing(model, talks, capsys):
    assert transcribe(model, talks / "a.wav") == 0
    assert capsys.readouterr().err == ""
