"""A recording that is still being made: its text so far, and all of it at the end.

A search in chunks reads chunk by chunk. Any other search needs what comes after a word
too: what was heard is recognised again at each silence, and every few seconds while speech goes on. It is cut as a long
recording is, so that the end is what the whole recording would have given with every cut.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from launcher.inference.segments import SILENCE, cut_at_silences, fixed_pieces
from launcher.inference.speech_detection import FRAME_S, SpeechDetector
from launcher.inference.streaming import StreamingRecognizer
from launcher.inference.transcriber import Transcriber
from launcher.inference.transcripts import SegmentTranscript, joined_transcript, transcript
from launcher.inference.words import joined_text
from launcher.recipe.search import GreedyConfig, PrefixBeamConfig
from launcher.serving.batching import BatchedModel, Batcher, Work

# The seconds that were heard, and the text so far.
OnText: TypeAlias = Callable[[float, str], None]
# Silero's own default for the beginning of speech.
SPEECH = 0.5
PAUSE_S = 0.3
# Speech without a pause is shown after so long.
SHOWN_EVERY_S = 2.0
# Samples for the detector at once; less would cost more than it shows.
HEARD_S = 0.25


def reads_chunks(batcher: Batcher) -> bool:
    """Whether a model reads audio as it arrives."""
    config = batcher.model.search.config
    return config.chunk is not None and isinstance(config, GreedyConfig | PrefixBeamConfig)


def recognise_live(
    batcher: Batcher, work: Work, blocks: Iterator[np.ndarray], on_text: OnText
) -> dict[str, Any] | None:
    """A row as a `Transcriber` gives it, of mono float32 samples at the model's rate that come in blocks; None where
    none came. AbandonedError when the work is abandoned."""
    if reads_chunks(batcher):
        return _recognise_chunks(batcher, work, blocks, on_text)
    return _GrowingRecording(batcher, work, on_text).recognise(blocks)


def _recognise_chunks(
    batcher: Batcher, work: Work, blocks: Iterator[np.ndarray], on_text: OnText
) -> dict[str, Any] | None:
    model = batcher.model
    stream = StreamingRecognizer(model)
    num_read = 0
    shown = ""
    for piece, _ in fixed_pieces(blocks, stream.chunk_samples):
        work.check()
        # All that computes shares one thread, so that requests and streams take turns.
        best = batcher.compute.submit(stream.push, piece).result()
        num_read += len(piece)
        text = model.tokenizer.decode(best.tokens)
        if text != shown:
            shown = text
            on_text(num_read / model.features.config.sample_rate_hz, text)
    if num_read == 0:
        return None
    hypotheses = batcher.compute.submit(stream.finish).result()
    seconds = num_read / model.features.config.sample_rate_hz
    return {"seconds": round(seconds, 3), **transcript(hypotheses, model.tokenizer, model.frame_s, seconds)}


class _GrowingRecording:
    """Segments that are over, and the samples of the one that is still going on."""

    def __init__(self, batcher: Batcher, work: Work, on_text: OnText):
        self._model = BatchedModel(batcher, work)
        self._rate_hz = self._model.features.config.sample_rate_hz
        self._on_text = on_text
        self._segments: list[SegmentTranscript] = []
        self._growing_S = np.zeros(0, np.float32)
        self._growing_start = 0
        self._num_heard = 0
        self._shown = ""

    def recognise(self, blocks: Iterator[np.ndarray]) -> dict[str, Any] | None:
        transcriber = Transcriber(self._model)
        for segment in cut_at_silences(self._listen(blocks), self._rate_hz):
            transcriber.recognise_segments([segment], self._segments)
            end = round(segment.end_s * self._rate_hz)
            self._growing_S = self._growing_S[end - self._growing_start :].copy()
            self._growing_start = end
        if self._num_heard == 0:
            return None
        seconds = self._num_heard / self._rate_hz
        row = joined_transcript(self._segments, self._model.tokenizer, self._model.frame_s, seconds)
        return {"seconds": round(seconds, 3), **row}

    def _listen(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Hand the blocks on, and show the text at silences on the way."""
        detector = SpeechDetector(self._rate_hz)
        silence_s = 0.0
        unseen_speech_s = 0.0
        for piece_S, _ in fixed_pieces(blocks, round(HEARD_S * self._rate_hz)):
            self._growing_S = np.concatenate((self._growing_S, piece_S))
            self._num_heard += len(piece_S)
            for probability in detector.push(piece_S):
                if probability >= SPEECH:
                    unseen_speech_s += FRAME_S
                if probability >= SILENCE:
                    silence_s = 0.0
                else:
                    silence_s += FRAME_S
            is_pause = unseen_speech_s > 0 and silence_s >= PAUSE_S
            if is_pause or unseen_speech_s >= SHOWN_EVERY_S:
                unseen_speech_s = 0.0
                self._show()
            yield piece_S

    def _show(self) -> None:
        model = self._model
        texts = []
        for segment in self._segments:
            texts.append(joined_text([word.text for word in segment.words]))
        final = joined_text([text for text in texts if text])
        growing = model.recognise([self._growing_S])[0]
        text = joined_text([part for part in (final, growing) if part])
        if text != self._shown:
            self._shown = text
            self._on_text(self._num_heard / self._rate_hz, text)
