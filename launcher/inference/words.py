"""Words of a hypothesis: their texts, times and confidences, from its tokens, whichever search wrote these.

A word begins at a piece that begins with a space. Writing without spaces (Chinese, Japanese, Thai and others) gives
each piece as a word of its own: there is no other border to be seen. Together the words are the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.text.tokenizer import UNKNOWN, Tokenizer
from model.search import Hypothesis

# SentencePiece's sign for a space.
SPACE = "\u2581"
# First and last characters of scripts that are written without spaces: Thai to Burmese, Khmer, and from the radicals of
# Chinese to the supplement of its characters, Hangul, which has spaces, left out.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0xA4CF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class Word:
    """A word in a hypothesis: that of its tokens from `first` up to `stop`.

    start_s and end_s are seconds from the start of the recording, None where the tokens do not fit into the frames.
    confidence is that of the least certain of its tokens: a word is right only when all of them are.
    """

    text: str
    start_s: float | None
    end_s: float | None
    confidence: float
    first: int
    stop: int

    @property
    def middle_s(self) -> float | None:
        if self.start_s is None or self.end_s is None:
            return None
        return (self.start_s + self.end_s) / 2


def hypothesis_words(
    hypothesis: Hypothesis,
    tokenizer: Tokenizer,
    frame_s: float,
    seconds: float = float("inf"),
) -> list[Word]:
    """The words of a hypothesis of a recording of so many seconds; `frame_s` is the time from frame to frame."""
    pieces = tokenizer.pieces
    words = []
    for first, stop in _word_ranges([pieces[token] for token in hypothesis.tokens], hypothesis.tokens):
        text = tokenizer.decode(hypothesis.tokens[first:stop]).strip()
        # The space that comes before a word, if it is a token of its own, is no part of its time.
        begin = first
        while begin < stop - 1 and pieces[hypothesis.tokens[begin]] == SPACE:
            begin += 1
        last = stop - 1
        while last > begin and pieces[hypothesis.tokens[last]] == SPACE:
            last -= 1
        start_s = None
        end_s = None
        if hypothesis.frames:
            # The last frame reaches past the end of a recording, as features are cut into whole steps.
            start_s = min(hypothesis.frames[begin] * frame_s, seconds)
            end_s = min(hypothesis.ends[last] * frame_s, seconds)
        confidence = min(hypothesis.confidences[begin : last + 1])
        words.append(Word(text, start_s, end_s, confidence, first, stop))
    return words


def _word_ranges(pieces: Sequence[str], tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Where each word begins and ends in the tokens; every token is in one, unless there are spaces alone."""
    starts = []
    has_letters = False
    for position, piece in enumerate(pieces):
        letters = piece.replace(SPACE, "")
        begins = piece.startswith(SPACE) and has_letters
        if position > 0 and has_letters and letters:
            previous = pieces[position - 1]
            is_unknown = UNKNOWN in (tokens[position], tokens[position - 1])
            begins = begins or is_unknown or _is_unspaced(piece[0]) or _is_unspaced(previous[-1])
        if begins or not starts:
            starts.append(position)
            has_letters = False
        has_letters = has_letters or bool(letters)
    # Spaces behind the last word belong to it.
    if len(starts) > 1 and not has_letters:
        starts.pop()
    elif not has_letters:
        return []
    return list(zip(starts, [*starts[1:], len(pieces)], strict=True))


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in UNSPACED)


def joined_text(words: Sequence[str]) -> str:
    """Words, or texts of segments, as one text: with spaces, but between two characters that are written without."""
    text = ""
    for word in words:
        text += separator(text, word) + word
    return text


def separator(before: str, after: str) -> str:
    """What stands between two texts: a space, unless one is empty or both characters are written without."""
    if not before or not after or (_is_unspaced(before[-1]) and _is_unspaced(after[0])):
        return ""
    return " "


def with_all_times(words: Sequence[Word], start_s: float, end_s: float) -> list[Word]:
    """The words of a stretch of a recording, with times for those that have none, spread evenly over what is between
    the words that have some; never backwards, and none without any length."""
    timed = []
    position = 0
    before_s = start_s
    while position < len(words):
        stop = position
        while stop < len(words) and words[stop].start_s is None:
            stop += 1
        after_s = end_s
        if stop < len(words):
            after_s = words[stop].start_s or 0.0
        width_s = max(after_s - before_s, 0.0) / max(stop - position, 1)
        for number, word in enumerate(words[position:stop]):
            word_start_s = before_s + number * width_s
            timed.append(replace(word, start_s=word_start_s, end_s=word_start_s + width_s))
        if stop < len(words):
            timed.append(words[stop])
            before_s = words[stop].end_s or before_s
        position = stop + 1
    return timed
