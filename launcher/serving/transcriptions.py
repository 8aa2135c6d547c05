"""What `/v1/audio/transcriptions` takes and gives: OpenAI's form, its formats, and what Chorus adds to them."""

import math
import zlib
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from launcher.inference.transcript_formats import FORMATS, Row, timed_words
from launcher.serving.batching import Work

# ISO 639, and what a region or a script may add to it (BCP 47).
Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$")]
ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]
UNDETERMINED = "und"
MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
# A confidence of 0 has no logarithm.
LEAST_CONFIDENCE = 1e-4


class TranscriptionForm(BaseModel):
    """A request, field by field. What is not here is refused: a field that is ignored would seem to have worked."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="the recording; its name is not used")
    model: str = Field(max_length=256, description="one of /v1/models")
    language: Language | None = Field(
        default=None, description="ISO 639 code, given back in verbose_json; a model recognises what it was trained on"
    )
    prompt: str | None = Field(default=None, max_length=10_000, description="ignored")
    response_format: ResponseFormat = "json"
    temperature: float = Field(default=0.0, ge=0, le=1, description="ignored: a search draws nothing")
    timestamp_granularities: list[Granularity] | None = Field(
        default=None,
        alias="timestamp_granularities[]",
        max_length=2,
        description="of verbose_json: segment (the default), word, or both",
    )
    experts: bool = Field(
        default=False, description="of verbose_json, not of OpenAI: which expert each frame used at each layer"
    )


class TranscriptionText(BaseModel):
    text: str


class TranscribedWord(BaseModel):
    word: str
    start: float = Field(description="seconds")
    end: float = Field(description="seconds")
    confidence: float = Field(description="that of the least certain token; not of OpenAI")


class TranscribedSegment(BaseModel):
    """A stretch of the recording; Whisper's values that other models lack are said in docs/serving.md."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class LayerChoices(BaseModel):
    name: str
    layer: int
    block: int
    experts: int = Field(description="how many there are")
    frames: list[list[int | None]] = Field(description="of each frame its experts, the likeliest first")


class FrameExperts(BaseModel):
    frame_s: float = Field(description="from frame to frame, in seconds")
    layers: list[LayerChoices]


class VerboseTranscription(BaseModel):
    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    words: list[TranscribedWord] | None = None
    segments: list[TranscribedSegment] | None = None
    experts: FrameExperts | None = Field(
        default=None, description="null for a recording that was recognised in several segments"
    )


def write_transcription(form: TranscriptionForm, row: Row) -> tuple[str, str]:
    """The text of an answer in a format of subtitles or plain text, and its media type."""
    return FORMATS[form.response_format].write(row), MEDIA_TYPES[form.response_format]


def verbose_transcription(
    form: TranscriptionForm, row: Row, pieces: list[str], frame_s: float, work: Work
) -> VerboseTranscription:
    granularities = form.timestamp_granularities or ["segment"]
    answer = VerboseTranscription(language=form.language or UNDETERMINED, duration=row["seconds"], text=row["text"])
    if "word" in granularities:
        answer.words = []
        for word in timed_words(row):
            start_s = round(word.start_s or 0.0, 3)
            end_s = round(word.end_s or 0.0, 3)
            answer.words.append(
                TranscribedWord(word=word.text, start=start_s, end=end_s, confidence=round(word.confidence, 4))
            )
    if "segment" in granularities:
        answer.segments = _segments(row, pieces)
    # Segments overlap, and have no frames in common: a map of a long recording would not be one.
    if form.experts and len(work.experts) == 1:
        layers = [LayerChoices.model_validate(choices) for choices in work.experts[0]]
        answer.experts = FrameExperts(frame_s=frame_s, layers=layers)
    return answer


def _segments(row: Row, pieces: list[str]) -> list[TranscribedSegment]:
    whole = {"start_s": 0.0, "end_s": row["seconds"], "text": row["text"]}
    number_of_piece = {piece: number for number, piece in enumerate(pieces)}
    tokens = row["n_best"][0]["tokens"]
    segments = []
    rows: list[dict[str, Any]] = row.get("segments") or [whole]
    next_token = 0
    for number, segment in enumerate(rows):
        is_last = number + 1 == len(rows)
        numbers = []
        logarithms = []
        while next_token < len(tokens):
            token = tokens[next_token]
            start_s = token["start_s"]
            if not is_last and start_s is not None and start_s >= segment["end_s"]:
                break
            numbers.append(number_of_piece[token["token"]])
            logarithms.append(math.log(max(token["confidence"], LEAST_CONFIDENCE)))
            next_token += 1
        text = segment["text"]
        encoded = text.encode()
        segments.append(
            TranscribedSegment(
                id=number,
                seek=round(100 * segment["start_s"]),
                start=segment["start_s"],
                end=segment["end_s"],
                text=text,
                tokens=numbers,
                temperature=0.0,
                avg_logprob=round(sum(logarithms) / max(len(logarithms), 1), 4),
                compression_ratio=round(len(encoded) / len(zlib.compress(encoded)), 4),
                no_speech_prob=float(not text),
            )
        )
    return segments
