"""Recognises recordings of any length, one after the other, with a finished model.

A recording that is longer than an utterance of a training is cut at silences, and recognised segment by segment in
memory that does not grow with it. What is decoded, how long it may be, and which files are opened is bounded as
docs/security.md says.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from data.audio import MIN_SPEECH_S, AudioError, Clip, open_recording, read_blocks
from data.containers import ForeignAudioError
from data.errors import DataError
from data.recordings import MAX_RECORDING_S
from launcher.errors import ConfigError
from launcher.inference.ffmpeg import decoded_file, find_ffmpeg
from launcher.inference.finished_model import PROCESSORS, FinishedModel
from launcher.inference.precision import Dtype, set_dtype
from launcher.inference.recording_sources import STANDARD_INPUT, RecordingSource, local_file
from launcher.inference.segments import SHARED_S, Segment, cut_at_silences, fixed_pieces
from launcher.inference.speech_detection import load_detector
from launcher.inference.streaming import StreamingRecognizer
from launcher.inference.transcripts import SegmentTranscript, join_shared, joined_transcript, transcript
from launcher.recipe import SearchConfig
from model.search import Hypothesis

# What is shown while a recording is read: the seconds read, and the hypothesis so far.
OnText: TypeAlias = Callable[[float, str], None]
# The seconds done, and those that there are.
OnProgress: TypeAlias = Callable[[float, float], None]
Cut: TypeAlias = Literal["auto", "always", "never"]
# Shorter recordings are recognised in one piece: trainings have utterances of up to 30 s, and memory is no matter.
CUT_ABOVE_S = 60.0
# Without a detector, longer ones are refused: memory and errors grow with what is recognised in one piece.
MAX_WHOLE_S = 600.0
# Padded audio of the segments that are recognised together.
BATCH_S = 40.0

logger = logging.getLogger(__name__)


class Transcriber:
    """Recognises recordings, one after the other, with a finished model."""

    def __init__(self, model: FinishedModel, cut: Cut = "auto"):
        self.model = model
        self.cut = cut
        if cut == "always":
            # What is missing is said before any recording is read.
            load_detector()

    @classmethod
    def load(
        cls,
        model_folder: Path,
        search: SearchConfig | None = None,
        device: torch.device = PROCESSORS,
        cut: Cut = "auto",
        dtype: Dtype = "fp32",
    ) -> "Transcriber":
        """CheckpointError when the model cannot be read, ConfigError or DataError when the search does not suit it, and
        ConfigError when the device does not compute with such numbers."""
        model = FinishedModel.load(model_folder, search, device)
        set_dtype(model, dtype)
        return cls(model, cut)

    def transcribe(
        self,
        path: Path,
        on_text: OnText | None = None,
        on_progress: OnProgress | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """The text of the recording in a file that libsndfile or ffmpeg reads, as `transcript` describes it, called
        `name` if it is not called by its path.

        With `on_text`, the recording is read chunk by chunk, and the seconds read and the hypothesis so far are handed
        over after each. DataError when there is no such recording, it cannot be decoded, or it holds no sound;
        ConfigError for a search that cannot read chunk by chunk, and where a long one cannot be cut.
        """
        check_recording(path)
        name = name or str(path)
        sample_rate_hz = self.model.features.config.sample_rate_hz
        try:
            with _readable_file(path, sample_rate_hz) as readable:
                seconds = open_recording(readable).seconds
                blocks = read_blocks(Clip(readable), sample_rate_hz, MAX_RECORDING_S)
                row = self._recognise(blocks, seconds, name, on_text, on_progress or (lambda *_: None))
        except AudioError as error:
            # Of a temporary file the path says nothing.
            reason = str(error).replace(str(path), name)
            raise DataError(f"{name} cannot be recognised: {reason}.") from error
        return {"audio": name, "seconds": round(seconds, 3), **row}

    def transcribe_source(
        self, source: RecordingSource, on_text: OnText | None = None, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """As `transcribe`, of what a user named."""
        if source.name != STANDARD_INPUT and not source.is_url:
            return self.transcribe(Path(source.name), on_text, on_progress)
        with local_file(source) as path:
            return self.transcribe(path, on_text, on_progress, source.name)

    def _recognise(
        self, blocks: Iterator[np.ndarray], seconds: float, name: str, on_text: OnText | None, on_progress: OnProgress
    ) -> dict[str, Any]:
        model = self.model
        config = model.search.config
        is_long = seconds > CUT_ABOVE_S
        is_cut = self.cut == "always"
        if self.cut == "auto" and is_long and on_text is None:
            is_cut = _can_be_cut(seconds, name)
        # Chunks are what bounds the memory of a search that can read them one by one, and both give the same.
        by_chunks = config.chunk is not None and is_long and config.kind in ("greedy", "prefix_beam")
        if on_text is not None or by_chunks:
            hypotheses = self._recognise_chunks(blocks, seconds, name, on_text, on_progress)
        elif is_cut:
            return self._recognise_segments(blocks, seconds, name, on_progress)
        else:
            waveform = np.concatenate(list(blocks))
            _check_length(len(waveform), model, name)
            hypotheses = model.hypotheses([waveform])[0]
        return transcript(hypotheses, model.tokenizer, model.frame_s, seconds)

    def _recognise_chunks(
        self, blocks: Iterator[np.ndarray], seconds: float, name: str, on_text: OnText | None, on_progress: OnProgress
    ) -> list[Hypothesis]:
        model = self.model
        sample_rate_hz = model.features.config.sample_rate_hz
        stream = StreamingRecognizer(model)
        num_read = 0
        for piece, _ in fixed_pieces(blocks, stream.chunk_samples):
            best = stream.push(piece)
            num_read += len(piece)
            read_s = num_read / sample_rate_hz
            on_progress(read_s, seconds)
            if on_text is not None:
                on_text(read_s, model.tokenizer.decode(best.tokens))
        _check_length(num_read, model, name)
        return stream.finish()

    def _recognise_segments(
        self, blocks: Iterator[np.ndarray], seconds: float, name: str, on_progress: OnProgress
    ) -> dict[str, Any]:
        model = self.model
        sample_rate_hz = model.features.config.sample_rate_hz
        transcripts: list[SegmentTranscript] = []
        batch: list[Segment] = []
        num_longest = 0
        for segment in cut_at_silences(blocks, sample_rate_hz):
            num_longest = max(num_longest, len(segment.waveform))
            if batch and num_longest * (len(batch) + 1) > BATCH_S * sample_rate_hz:
                self.recognise_segments(batch, transcripts)
                on_progress(batch[-1].end_s, seconds)
                batch = []
                num_longest = len(segment.waveform)
            batch.append(segment)
        _check_length(num_longest, model, name)
        self.recognise_segments(batch, transcripts)
        on_progress(seconds, seconds)
        return joined_transcript(transcripts, model.tokenizer, model.frame_s, seconds)

    def recognise_segments(self, batch: list[Segment], transcripts: list[SegmentTranscript]) -> None:
        """Append the transcripts of segments to those of the segments before, and join where they share audio."""
        model = self.model
        hypotheses_of = model.hypotheses([segment.waveform for segment in batch])
        for segment, hypotheses in zip(batch, hypotheses_of, strict=True):
            recognised = SegmentTranscript(segment.start_s, segment.end_s, segment.audio_start_s, hypotheses)
            recognised.find_words(model.tokenizer, model.frame_s)
            if segment.shares_start:
                join_shared(transcripts[-1], recognised, SHARED_S)
            transcripts.append(recognised)


@contextmanager
def _readable_file(path: Path, sample_rate_hz: int) -> Iterator[Path]:
    """The recording as a file that libsndfile reads: itself, or what ffmpeg makes of it. Raises AudioError."""
    try:
        open_recording(path)
    except ForeignAudioError as error:
        if find_ffmpeg() is None:
            raise AudioError(f"{error}. Where ffmpeg is installed, such files are read with it") from error
        try:
            with decoded_file(path, sample_rate_hz) as decoded:
                yield decoded
        except DataError as failure:
            raise AudioError(f"{error}; {failure}") from error
        return
    yield path


def _can_be_cut(seconds: float, name: str) -> bool:
    """Whether a detector is installed. Without one, a recording that is too long for one piece is a DataError."""
    try:
        load_detector()
    except ConfigError as error:
        if seconds > MAX_WHOLE_S:
            raise DataError(f"{name} cannot be recognised: it lasts {seconds:.0f} s. {error}") from None
        logger.warning("%s is recognised in one piece. %s", name, error)
        return False
    return True


def _check_length(num_samples: int, model: FinishedModel, name: str) -> None:
    sample_rate_hz = model.features.config.sample_rate_hz
    if num_samples == 0:
        raise DataError(f"{name} cannot be recognised: it holds no sample at {sample_rate_hz} Hz.")
    if num_samples < MIN_SPEECH_S * sample_rate_hz:
        logger.warning("%s has no text: it is shorter than %g s.", name, MIN_SPEECH_S)


def check_recording(path: Path) -> None:
    """Refuse (DataError) what is no file to read a recording from."""
    try:
        is_folder = path.is_dir()
        is_stream = str(path) == "-" or path.is_fifo() or path.is_char_device()
        is_file = path.is_file()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give the path of an audio file.") from None
    if is_folder:
        raise DataError(
            f"{path} is a folder in which no file has the ending of a recording, such as .wav, .flac, .mp3 or .m4a. "
            "Name its files one by one, or another folder."
        )
    if is_stream:
        raise DataError(
            f"{path} is a stream, and recordings are read from files and from standard input alone. Send it there "
            "and name it `-`, or write it to a file first and give that file's path."
        )
    if is_file:
        return
    if path.is_symlink():
        raise DataError(f"{path} is a link to {path.readlink()}, where nothing is. Give the path of an audio file.")
    if has_magic(str(path)):
        raise DataError(f"No recording matches {path}, and none is called so. Give another pattern, or a path.")
    raise DataError(f"There is no recording at {path}. Give the path of an audio file.")
