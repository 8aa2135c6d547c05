"""What a recording's hypotheses are as rows of JSON: text, tokens, words, and the segments of one that was cut.

Segments that meet in silence are put one after the other. Where no silence was found, two segments share some seconds
of audio, and are joined at a word that both have heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.text.tokenizer import Tokenizer
from launcher.inference.words import Word, hypothesis_words, joined_text
from model.search import Hypothesis

# How far apart the times of one word may be in two segments that share it; the wider one, within which the same word
# may be said again, only where nothing is nearer.
SAME_WORD_S = (0.1, 0.3)


@dataclass
class SegmentTranscript:
    """The hypotheses of a segment, best first, and the words of the best one.

    Its audio began at `audio_start_s`; the segment itself is from start_s to end_s. All times but those in `hypotheses`
    are from the start of the recording. `shares_start` says that its audio begins before it, in the segment before.
    """

    start_s: float
    end_s: float
    audio_start_s: float
    hypotheses: list[Hypothesis]
    shares_start: bool = False
    words: list[Word] = field(default_factory=list)

    def find_words(self, tokenizer: Tokenizer, frame_s: float) -> None:
        """Fill in the words of the best hypothesis."""
        self.words = []
        for word in hypothesis_words(self.hypotheses[0], tokenizer, frame_s):
            if word.start_s is not None and word.end_s is not None:
                word = replace(word, start_s=word.start_s + self.audio_start_s, end_s=word.end_s + self.audio_start_s)
            self.words.append(word)


def join_shared(before: SegmentTranscript, after: SegmentTranscript, shared_s: float) -> None:
    """Take from two segments that share `shared_s` seconds of audio on each side of their border what the other one
    keeps: of the words that both heard, the one nearest to the border ends the first segment."""
    border_s = after.start_s
    for tolerance_s in SAME_WORD_S:
        distance_s = shared_s
        join = None
        for number, word in enumerate(before.words):
            for other_number, other in enumerate(after.words):
                if word.text != other.text or word.middle_s is None or other.middle_s is None:
                    continue
                if abs(word.middle_s - other.middle_s) > tolerance_s:
                    continue
                word_distance_s = abs((word.middle_s + other.middle_s) / 2 - border_s)
                if word_distance_s < distance_s:
                    distance_s = word_distance_s
                    join = (number + 1, other_number + 1)
        if join is not None:
            num_before, num_given_up = join
            before.words = before.words[:num_before]
            after.words = after.words[num_given_up:]
            return
    # They heard nothing alike: each keeps what lies on its side.
    before.words = [word for word in before.words if word.middle_s is None or word.middle_s < border_s]
    after.words = [word for word in after.words if word.middle_s is None or word.middle_s >= border_s]


def transcript(
    hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer, frame_s: float, seconds: float
) -> dict[str, Any]:
    """The best of the hypotheses of a recording of so many seconds as text, and all of them as `n_best`, with their
    tokens and words; docs/transcribe.md has an example. Times are in seconds from the start of the recording, None for
    tokens that do not fit into it."""
    n_best = []
    for hypothesis in hypotheses:
        words = hypothesis_words(hypothesis, tokenizer, frame_s, seconds)
        n_best.append(_hypothesis_row(hypothesis, words, tokenizer, frame_s))
    return {"text": n_best[0]["text"], "n_best": n_best}


def joined_transcript(
    segments: Sequence[SegmentTranscript], tokenizer: Tokenizer, frame_s: float, seconds: float
) -> dict[str, Any]:
    """As `transcript`, of a recording that was recognised in segments: one hypothesis, which joins the best one of each
    segment, and the segments with all of theirs."""
    texts = []
    tokens = []
    words = []
    score = 0.0
    segment_rows = []
    for segment in segments:
        best = segment.hypotheses[0]
        score += best.score
        text = ""
        if segment.words:
            # A join takes words away at the ends alone: what is left lies together.
            first = segment.words[0].first
            stop = segment.words[-1].stop
            text = _text(best.tokens[first:stop], tokenizer)
            tokens += _token_rows(best, tokenizer, frame_s, segment.audio_start_s)[first:stop]
            words += [word_row(word, seconds) for word in segment.words]
        texts.append(text)
        row = {"start_s": round(segment.start_s, 3), "end_s": round(segment.end_s, 3), "text": text}
        if len(segment.hypotheses) > 1:
            row["n_best"] = [_alternative_row(hypothesis, tokenizer) for hypothesis in segment.hypotheses]
        segment_rows.append(row)
    text = joined_text(texts)
    hypothesis = {"text": text, "score": round(score, 4), "probability": None, "tokens": tokens, "words": words}
    return {"text": text, "n_best": [hypothesis], "segments": segment_rows}


def word_row(word: Word, seconds: float = float("inf")) -> dict[str, Any]:
    start_s = word.start_s
    end_s = word.end_s
    if start_s is not None and end_s is not None:
        start_s = round(min(start_s, seconds), 3)
        end_s = round(min(end_s, seconds), 3)
    return {"word": word.text, "start_s": start_s, "end_s": end_s, "confidence": round(word.confidence, 4)}


def _hypothesis_row(
    hypothesis: Hypothesis, words: Sequence[Word], tokenizer: Tokenizer, frame_s: float
) -> dict[str, Any]:
    row = _alternative_row(hypothesis, tokenizer)
    row["tokens"] = _token_rows(hypothesis, tokenizer, frame_s, 0.0)
    row["words"] = [word_row(word) for word in words]
    return row


def _alternative_row(hypothesis: Hypothesis, tokenizer: Tokenizer) -> dict[str, Any]:
    # A search that ends with one hypothesis has nothing to compare it with.
    probability = hypothesis.probability
    if probability is not None:
        probability = round(probability, 4)
    return {
        "text": _text(hypothesis.tokens, tokenizer),
        "score": round(hypothesis.score, 4),
        "probability": probability,
    }


def _text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """What words with one space between them are: CTC may write a space twice, with a blank between."""
    return " ".join(tokenizer.decode(tokens).split())


def _token_rows(hypothesis: Hypothesis, tokenizer: Tokenizer, frame_s: float, offset_s: float) -> list[dict[str, Any]]:
    pieces = tokenizer.pieces
    # Empty where there are more tokens than frames, as a decoder may write.
    frames = hypothesis.frames or [None] * len(hypothesis.tokens)
    rows = []
    for token, frame, confidence in zip(hypothesis.tokens, frames, hypothesis.confidences, strict=True):
        start_s = None
        if frame is not None:
            start_s = round(offset_s + frame * frame_s, 3)
        rows.append({"token": pieces[token], "start_s": start_s, "confidence": round(confidence, 4)})
    return rows
