"""Long recordings cut into segments: nothing is lost or doubled at a join, however the samples arrive."""

import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from data.audio import Clip, read_clip
from data.corpora.aelita import ROOT as AELITA
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.errors import ConfigError
from launcher.inference import segments, speech_detection
from launcher.inference.segments import MAX_SEGMENT_S, MIN_SEGMENT_S, SHARED_S, choose_cut, cut_at_silences
from launcher.inference.speech_detection import FRAME_S, FRAME_SAMPLES, SpeechDetector
from launcher.inference.transcriber import Transcriber
from model.search import Hypothesis

RATE_HZ = 16000
LETTERS = "абвгдежз"
FRAME = 160


class LoudnessDetector:
    """Speech is what is loud: for sounds that Silero would not take for speech."""

    def __init__(self, sample_rate_hz: int):
        self.waiting = np.zeros(0, np.float32)

    def push(self, samples, is_last=False):
        samples = np.concatenate((self.waiting, samples))
        if is_last:
            samples = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
        num_whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
        self.waiting = samples[num_whole:]
        frames = samples[:num_whole].reshape(-1, FRAME_SAMPLES)
        return np.clip(20 * np.abs(frames).mean(1), 0, 1)


class Listener:
    """A recogniser of tones: each is a word of one letter, at its time, if it hears most of it."""

    def __init__(self, folder):
        self.tokenizer = train_tokenizer([" ".join(LETTERS)] * 3, TokenizerConfig(), folder)
        self.features = SimpleNamespace(config=SimpleNamespace(sample_rate_hz=RATE_HZ))
        self.search = SimpleNamespace(config=SimpleNamespace(chunk=None, kind="greedy"))
        self.frame_s = FRAME / RATE_HZ
        self.longest_batch_s = 0.0

    def hypotheses(self, waveforms):
        longest = max(len(waveform) for waveform in waveforms)
        self.longest_batch_s = max(self.longest_batch_s, longest * len(waveforms) / RATE_HZ)
        return [[self.listen(waveform)] for waveform in waveforms]

    def listen(self, waveform):
        num_frames = len(waveform) // FRAME
        frames = waveform[: num_frames * FRAME].reshape(-1, FRAME)
        is_loud = np.abs(frames).mean(1) > 0.05
        edges = np.diff(np.concatenate(([0], is_loud.astype(int), [0])))
        text, starts, ends = [], [], []
        for begin, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            # What is cut short is heard as another word, if at all.
            if end - begin < 8:
                continue
            spectrum = np.abs(np.fft.rfft(frames[begin + 1 : end - 1].reshape(-1)))
            peak_hz = spectrum.argmax() * RATE_HZ / (2 * (len(spectrum) - 1))
            letter = LETTERS[min(max(round((peak_hz - 300) / 100), 0), 7)] if end - begin > 12 else "а"
            text += [" ", letter] if text else [letter]
            starts += [begin, begin] if starts else [begin]
            ends += [begin, end] if ends else [end]
        tokens = self.tokenizer.encode("".join(text))
        return Hypothesis(tokens, starts, 0.0, [0.9] * len(tokens), None, ends)


def tones(letters: str, pauses_s: list[float]) -> np.ndarray:
    """A tone of 0.2 s for each letter, and a pause after it."""
    pieces = []
    time = np.arange(round(0.2 * RATE_HZ)) / RATE_HZ
    for letter, pause_s in zip(letters, pauses_s, strict=True):
        tone = 0.3 * np.sin(2 * np.pi * (300 + 100 * LETTERS.index(letter)) * time)
        pieces += [tone, np.zeros(round(pause_s * RATE_HZ))]
    return np.concatenate(pieces).astype(np.float32)


@pytest.fixture
def listener(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SpeechDetector", LoudnessDetector)
    transcriber = Transcriber.__new__(Transcriber)
    transcriber.model = Listener(tmp_path)
    transcriber.cut = "always"
    return transcriber


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["silences between words", "no silence at all", "silences here and there"])
def test_a_recording_gives_the_same_words_cut_or_not(listener, tmp_path, kind, seed):
    drawn = random.Random(seed)
    letters = "".join(drawn.choice(LETTERS) for _ in range(300))
    pauses_s = {
        "silences between words": [drawn.uniform(0.3, 0.6) for _ in letters],
        "no silence at all": [0.05] * 300,
        "silences here and there": [0.5 if drawn.random() < 0.005 else drawn.uniform(0.04, 0.09) for _ in letters],
    }[kind]
    soundfile.write(tmp_path / "a.wav", tones(letters, pauses_s), RATE_HZ)
    cut = listener.transcribe(tmp_path / "a.wav")
    listener.cut = "never"
    whole = listener.transcribe(tmp_path / "a.wav")
    assert whole["text"] == " ".join(letters)
    assert cut["text"] == whole["text"]
    assert len(cut["segments"]) >= 3
    words = cut["n_best"][0]["words"]
    expected = whole["n_best"][0]["words"]
    assert [word["word"] for word in words] == [word["word"] for word in expected]
    for word, other in zip(words, expected, strict=True):
        assert word["start_s"] == pytest.approx(other["start_s"], abs=0.021)
        assert word["end_s"] == pytest.approx(other["end_s"], abs=0.021)
    tokens = cut["n_best"][0]["tokens"]
    assert "".join(token["token"] for token in tokens).replace("▁", "") == letters
    assert " ".join(segment["text"] for segment in cut["segments"]) == cut["text"]


@pytest.mark.parametrize("block_s", [0.01, 1.0, 7.3, 500.0])
def test_segments_hold_every_sample_once_however_the_samples_arrive(monkeypatch, block_s):
    monkeypatch.setattr(segments, "SpeechDetector", LoudnessDetector)
    drawn = random.Random(1)
    waveform = tones("а" * 400, [drawn.choice([0.05, 0.05, 0.05, 0.4]) for _ in range(400)])
    num_block = round(block_s * RATE_HZ)
    blocks = [waveform[start : start + num_block] for start in range(0, len(waveform), num_block)]
    found = list(cut_at_silences(iter(blocks), RATE_HZ))
    (reference,) = [list(cut_at_silences([waveform], RATE_HZ))]
    assert [(one.start_s, one.end_s) for one in found] == [(one.start_s, one.end_s) for one in reference]
    assert found[0].start_s == 0
    assert found[-1].end_s == len(waveform) / RATE_HZ
    for segment, following in zip(found, [*found[1:], None], strict=True):
        assert segment.end_s - segment.start_s <= MAX_SEGMENT_S + SHARED_S
        shared_s = SHARED_S if segment.shares_start else 0.0
        assert segment.audio_start_s == pytest.approx(segment.start_s - shared_s)
        audio_end_s = segment.audio_start_s + len(segment.waveform) / RATE_HZ
        if following is not None:
            assert following.start_s == segment.end_s
            assert segment.end_s - segment.start_s >= MIN_SEGMENT_S
            assert audio_end_s == pytest.approx(segment.end_s + (SHARED_S if following.shares_start else 0.0))
        start = round(segment.audio_start_s * RATE_HZ)
        assert np.array_equal(segment.waveform, waveform[start : start + len(segment.waveform)])


@pytest.mark.parametrize("seconds", [0.0, 0.01, 5.0, 31.9, 32.1, 62.0])
def test_recordings_of_any_length_are_cut(monkeypatch, seconds):
    monkeypatch.setattr(segments, "SpeechDetector", LoudnessDetector)
    waveform = np.zeros(round(seconds * RATE_HZ), np.float32)
    found = list(cut_at_silences([waveform], RATE_HZ))
    assert sum(len(segment.waveform) for segment in found) == len(waveform)
    assert all(len(segment.waveform) for segment in found)


def test_a_cut_lies_in_the_longest_silence_or_where_speech_is_least_likely():
    probabilities = np.ones(1000, np.float32)
    probabilities[400:410] = 0.1
    probabilities[600:620] = 0.1
    assert choose_cut(probabilities) == (610, False)
    probabilities[:] = 1.0
    # Too short for a silence.
    probabilities[500:503] = 0.0
    place, in_speech = choose_cut(probabilities)
    assert in_speech
    assert 499 <= place <= 503


def test_real_sentences_are_never_cut_within_a_phrase():
    """Recordings of the embedded corpus one after the other, whose phrases were aligned by others."""
    phrases: dict[str, list[dict]] = {}
    for line in (AELITA / "phrases.jsonl").read_text("utf-8").splitlines():
        phrase = json.loads(line)
        phrases.setdefault(phrase["sentence"], []).append(phrase)
    waveforms = []
    spoken = []
    origin_s = 0.0
    for line in (AELITA / "transcripts.jsonl").read_text("utf-8").splitlines()[:26]:
        sentence = json.loads(line)
        if sentence["id"] not in phrases:
            continue
        waveform = read_clip(Clip(AELITA / sentence["audio"]), RATE_HZ)
        for phrase in phrases[sentence["id"]]:
            spoken.append((origin_s + phrase["start_s"], origin_s + phrase["end_s"]))
        waveforms.append(waveform)
        origin_s += len(waveform) / RATE_HZ
    found = list(cut_at_silences(waveforms, RATE_HZ))
    assert len(found) > 4
    for segment in found[1:]:
        assert not segment.shares_start
        # The ends of aligned phrases are uncertain by some frames.
        assert not any(start_s + 0.05 < segment.start_s < end_s - 0.05 for start_s, end_s in spoken)


def test_the_detector_says_the_same_however_the_samples_arrive_and_leaves_threads_alone():
    num_threads = torch.get_num_threads()
    waveform = read_clip(Clip(next(AELITA.rglob("*.opus"))), RATE_HZ)
    whole = SpeechDetector(RATE_HZ).push(waveform, is_last=True)
    detector = SpeechDetector(RATE_HZ)
    pieces = [detector.push(waveform[start : start + 50_000]) for start in range(0, len(waveform), 50_000)]
    pieces.append(detector.push(np.zeros(0, np.float32), is_last=True))
    pieced = np.concatenate(pieces)
    assert len(whole) == len(pieced) == -(-len(waveform) // FRAME_SAMPLES)
    assert np.mean(np.abs(whole - pieced) > 0.1) < 0.01
    assert 0.3 < np.mean(whole > 0.5) < 1
    assert len(whole) * FRAME_S == pytest.approx(len(waveform) / RATE_HZ, abs=FRAME_S)
    assert torch.get_num_threads() == num_threads


def test_a_missing_detector_is_one_sentence_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    speech_detection.load_detector.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'chorus-asr\[vad\]'"):
        speech_detection.load_detector()
    speech_detection.load_detector.cache_clear()
