"""Finished models recognise on the device that is decided or named; a GPU is pretended."""

import re

import numpy as np
import pytest
import soundfile
import torch
from pretended_gpu import GPU, PretendedGpu

from data.features import FeaturesConfig
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from launcher.inference import evaluation
from launcher.inference.finished_model import FinishedModel, write_finished_model
from launcher.inference.streaming import StreamingRecognizer
from launcher.recipe.search import read_search
from launcher.run_folder import RunFolder, write_json
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.moe.router import ExpertsConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.search import Hypothesis
from model.transducer import TransducerConfig

SEARCHES = {
    "greedy": {},
    "prefix_beam": {"n_best": 3, "hotwords": {"phrases": ["two words"]}},
    "attention_beam": {"beam": 3},
    "rescoring": {"beam": 4, "reverse_weight": 0.3},
    "joint": {"beam": 3, "ctc_weight": 0.5},
    "transducer": {},
}
EXPERTS = ExpertsConfig(count=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model with everything that a search may ask for."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    texts = ["one word", "two words", "three more words"] * 5
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind="char"), run.tokenizer)
    write_json(run.features_file, {"mean": [-8.0] * 80, "std": [3.0] * 80})
    encoder = EncoderConfig(
        layers=2,
        width=16,
        heads=2,
        feedforward_width=16,
        kernel_size=3,
        causal_convolution=True,
        experts=EXPERTS,
    )
    config = RecognizerConfig(
        encoder=encoder,
        decoder=DecoderConfig(layers=1, heads=2, feedforward_width=16, right_to_left_layers=1),
        transducer=TransducerConfig(width=16),
    )
    torch.manual_seed(0)
    recognizer = Recognizer(config, 80, tokenizer.vocabulary_size)
    folder = run.stage("student").model
    folder.parent.mkdir()
    write_finished_model(folder, run, config, FeaturesConfig(), recognizer.state_dict())
    return folder


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU here")
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    # PyTorch's own answer to a build for CUDA on a machine without it.
    torch._C._ensureCUDADeviceGuardSet()
    # torch.tensor(..., device=...) makes its tensor on the processors, and moves it then.
    torch._C._set_only_lift_cpu_tensors(True)
    with PretendedGpu():
        yield
    torch._C._set_only_lift_cpu_tensors(False)


def waveforms(*seconds: float) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.standard_normal(int(16000 * length), dtype=np.float32) / 10 for length in seconds]


def assert_same(found: list[Hypothesis], wanted: list[Hypothesis]) -> None:
    """Up to the last digits: processors have kernels of their own."""
    assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in wanted]
    assert [hypothesis.frames for hypothesis in found] == [hypothesis.frames for hypothesis in wanted]
    scores = [hypothesis.score for hypothesis in wanted]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_search_finds_the_same_on_a_gpu(folder, gpu, kind):
    search = read_search({"kind": kind, **SEARCHES[kind]}, "test")
    recordings = waveforms(0.3, 0.5, 0.02)
    expected = FinishedModel.load(folder, search).hypotheses(recordings)
    model = FinishedModel.load(folder, search, GPU)
    assert model.device == GPU
    for found, wanted in zip(model.hypotheses(recordings), expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("kind", ["greedy", "prefix_beam"])
def test_a_recording_that_arrives_in_pieces_is_recognised_on_a_gpu(folder, gpu, kind):
    search = read_search({"kind": kind, "chunk": {"frames": 3, "left_chunks": 2}}, "test")
    (recording,) = waveforms(0.6)
    texts = []
    for device in (torch.device("cpu"), GPU):
        stream = StreamingRecognizer(FinishedModel.load(folder, search, device))
        for start in range(0, len(recording), 4000):
            stream.push(recording[start : start + 4000])
        texts.append(stream.finish())
    assert_same(*texts)


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_reports_as_it_gets_on(folder, kind):
    search = read_search({"kind": kind, **SEARCHES[kind]}, "test")
    model = FinishedModel.load(folder, search)
    reports = []
    model.report_to(lambda: reports.append(1))
    model.encode(waveforms(1.0))
    # Each block of the encoder.
    num_encoder_reports = len(reports)
    assert num_encoder_reports >= 2
    reports.clear()
    model.hypotheses(waveforms(1.0))
    if kind != "greedy":
        assert len(reports) > num_encoder_reports


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], None, "cuda"),
        ([], "cpu", "cpu"),
        (["--device", "cpu"], None, "cpu"),
        (["--device", "cuda"], "cpu", "cuda"),
        (["--device", "cuda:0"], None, "cuda"),
    ],
)
def test_transcribe_computes_where_it_is_told_or_where_there_is_a_gpu(
    folder, gpu, tmp_path, monkeypatch, capsys, options, environment, expected
):
    if environment is not None:
        monkeypatch.setenv("DS_ACCELERATOR", environment)
    soundfile.write(tmp_path / "a.wav", waveforms(0.5)[0], 16000)
    loaded = []
    load = FinishedModel.load

    def note(*arguments):
        loaded.append(load(*arguments))
        return loaded[-1]

    monkeypatch.setattr(evaluation.FinishedModel, "load", note)
    assert chorus(["transcribe", str(folder), str(tmp_path / "a.wav"), *options]) == 0
    assert [model.device.type for model in loaded] == [expected]
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "PyTorch .* sees none here"),
        ("cuda:3", "PyTorch .* sees none here"),
        ("gpu", "The device is 'gpu'; give cpu, cuda"),
        ("cuda:x", "The device is 'cuda:x'"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(
    folder, tmp_path, monkeypatch, capsys, device, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chorus(["transcribe", str(folder), str(tmp_path / "a.wav"), "--device", device]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert re.search(message, errors)
