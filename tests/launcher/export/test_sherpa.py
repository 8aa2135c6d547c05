"""sherpa-onnx itself loads an exported model and writes the text of a greedy search on real speech."""

import jiwer
import pytest
import torch
from small_models import real_speech, write_small_model

from data.features import FeaturesConfig, LogMel
from launcher.errors import ConfigError
from launcher.export.front_end import GraphFrontEnd
from launcher.export.model_files import open_model_files
from launcher.export.sherpa import sherpa_kind, write_sherpa
from launcher.inference.finished_model import FinishedModel

# The exporter takes seconds, and minutes where the cores are shared.
pytestmark = pytest.mark.timeout(900)

# The kind as which it is loaded, and the features that make it so.
CASES = [
    pytest.param("fire_red_asr_ctc", "kaldi", marks=pytest.mark.slow),
    ("omnilingual_asr_ctc", "log_mel"),
]


@pytest.mark.parametrize(("kind", "features"), CASES)
def test_the_text_is_that_of_a_greedy_search(kind, features, tmp_path):
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    pytest.importorskip("onnxscript")
    folder = write_small_model(tmp_path / "model", "full", features=features)
    out = tmp_path / "sherpa"
    out.mkdir()
    assert write_sherpa(out, open_model_files(folder), int8=False) == kind
    load = getattr(sherpa_onnx.OfflineRecognizer, f"from_{kind}")
    recogniser = load(model=str(out / "model.onnx"), tokens=str(out / "tokens.txt"))
    waveforms = real_speech(3)
    # Shorter than a window, and silence.
    waveforms += [waveforms[0][:100], 0 * waveforms[0]]
    if kind == "fire_red_asr_ctc":
        # sherpa-onnx itself asks for a frame at least.
        del waveforms[3]
    streams = []
    for waveform in waveforms:
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, waveform)
        streams.append(stream)
    recogniser.decode_streams(streams)
    texts = [stream.result.text.strip() for stream in streams]
    model = FinishedModel.load(folder)
    # One by one: what a batch's padding does to rounding is no matter of the export.
    expected = [model.recognise([waveform])[0].strip() for waveform in waveforms]
    # Features of another program, to rounding: a frame between two tokens may fall to the other one.
    assert jiwer.cer(" ".join(expected), " ".join(texts)) <= 0.02
    assert len(set(texts)) > 2


@pytest.mark.parametrize("kind", ["log_mel", "kaldi"])
@pytest.mark.parametrize("rate", [8000, 16000])
@torch.inference_mode()
def test_the_front_end_in_the_graph_is_ours(kind, rate):
    config = FeaturesConfig(kind=kind, sample_rate_hz=rate, mel_bins=40)
    waveform = torch.from_numpy(real_speech(1, rate)[0])[None] + 0.01
    mean, std = [-7.0] * 40, [3.0] * 40
    ours = LogMel(config)
    ours.set_statistics(torch.tensor(mean), torch.tensor(std))
    expected, _ = ours(waveform, torch.tensor([waveform.shape[1]]))
    # A sum of products in place of a fast Fourier transform, in fp32.
    torch.testing.assert_close(GraphFrontEnd(config, mean, std)(waveform), expected, atol=2e-3, rtol=0)


def test_a_model_of_another_rate_is_refused():
    with pytest.raises(ConfigError, match="8000 Hz"):
        sherpa_kind(FeaturesConfig(sample_rate_hz=8000, mel_bins=40))


def test_features_that_sherpa_does_not_compute_are_taken_into_the_graph():
    assert sherpa_kind(FeaturesConfig(kind="kaldi", floor=1e-10)) == "fire_red_asr_ctc"
    for other in ({"mel_bins": 40}, {"high_hz": 7600.0}, {"hop_ms": 12.5}):
        assert sherpa_kind(FeaturesConfig(kind="kaldi", **other)) == "omnilingual_asr_ctc"
