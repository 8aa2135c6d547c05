"""Transcripts as text, JSON, SubRip (SRT), WebVTT, NIST's CTM and Praat's TextGrid.

They are made from the rows that a `Transcriber` gives. Formats that need a time of every word get one: words that CTC
could not align are spread evenly between their neighbours.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias
from unicodedata import east_asian_width

from launcher.inference.words import Word, joined_text, separator, with_all_times

Row: TypeAlias = dict[str, Any]
# A cue of subtitles: two lines that are read in a few seconds.
MAX_LINE_CHARACTERS = 42
MAX_LINES = 2
MAX_CUE_S = 7.0
# A pause between words at which a cue ends.
CUE_PAUSE_S = 0.8
# A cue stays so long, unless the next one begins before: CTC ends a word where its last letter is clearest.
CUE_HOLD_S = 0.5
# The least that a word or an interval lasts in formats that know none of no length.
LEAST_S = 0.001


@dataclass(frozen=True)
class TranscriptFormat:
    """How a transcript is written. `joins` says whether several recordings may stand one after the other."""

    suffix: str
    joins: bool
    write: Callable[[Row], str]


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    lines: Sequence[Sequence[Word]]


def timed_words(row: Row) -> list[Word]:
    """The words of the best hypothesis, each with a time and in order: none begins before the one before has ended."""
    words = []
    for word in row["n_best"][0]["words"]:
        # A piece of a model from elsewhere may hold what ends a line in one of the formats, or nothing else.
        text = _one_line(word["word"])
        if text:
            words.append(Word(text, word["start_s"], word["end_s"], word["confidence"], 0, 0))
    seconds = row["seconds"]
    ordered = []
    before_s = 0.0
    for word in with_all_times(words, 0.0, seconds):
        start_s = max(word.start_s or 0.0, before_s)
        before_s = max(word.end_s or 0.0, start_s)
        ordered.append(Word(word.text, start_s, before_s, word.confidence, 0, 0))
    return ordered


def write_text(row: Row) -> str:
    return f"{_one_line(row['text'])}\n"


def write_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, indent=2) + "\n"


def write_srt(row: Row) -> str:
    """SubRip: numbered cues."""
    blocks = []
    for number, cue in enumerate(_cues(row), start=1):
        start = _clock(cue.start_s, ",")
        end = _clock(cue.end_s, ",")
        lines = []
        for line in cue.lines:
            # A line with a time and an arrow would be a cue of its own.
            lines.append(joined_text([word.text for word in line]).replace("-->", "->"))
        blocks.append("\n".join([str(number), f"{start} --> {end}", *lines, ""]))
    return "\n".join(blocks)


def write_webvtt(row: Row) -> str:
    """WebVTT: cues in which each word has its time, which players may show as it is spoken."""
    blocks = ["WEBVTT\n"]
    for cue in _cues(row):
        lines = []
        last_s = cue.start_s
        for words in cue.lines:
            line = ""
            before = ""
            for word in words:
                if line:
                    line += separator(before, word.text)
                start_s = word.start_s or 0.0
                # The first word begins with its cue; within a cue, times grow.
                if round(start_s - last_s, 3) > 0:
                    line += f"<{_clock(start_s, '.')}>"
                    last_s = start_s
                line += escape(word.text, quote=False)
                before = word.text
            lines.append(line)
        text = "\n".join(lines)
        blocks.append(f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n")
    return "\n".join(blocks)


def write_ctm(row: Row) -> str:
    """CTM: recording, channel, start, duration, word, confidence."""
    # A field ends at a space, and a line that begins with two semicolons is a comment.
    name = "_".join(row["audio"].split()).replace(";", "_") or "recording"
    lines = []
    for word in timed_words(row):
        start_s = word.start_s or 0.0
        length_s = max((word.end_s or 0.0) - start_s, LEAST_S)
        # Pieces of some tokenizers go over the border of two words, and a field holds one.
        parts = word.text.split()
        part_s = length_s / len(parts)
        for number, part in enumerate(parts):
            lines.append(f"{name} 1 {start_s + number * part_s:.3f} {part_s:.3f} {part} {word.confidence:.4f}\n")
    return "".join(lines)


def write_textgrid(row: Row) -> str:
    """TextGrid in Praat's long form: a tier of words, and one of their confidences."""
    seconds = max(row["seconds"], LEAST_S)
    words = []
    confidences = []
    before_s = 0.0
    # Intervals of a tier follow each other without a gap, from the start to the end, and none is empty.
    for word in timed_words(row):
        start_s = max(word.start_s or 0.0, before_s)
        end_s = min(max(word.end_s or 0.0, start_s + LEAST_S), seconds)
        if end_s <= start_s:
            # No room is left at the end of the recording: the word joins the one before.
            if words:
                words[-1] = (*words[-1][:2], f"{words[-1][2]} {word.text}")
            continue
        if start_s > before_s:
            words.append((before_s, start_s, ""))
            confidences.append((before_s, start_s, ""))
        words.append((start_s, end_s, word.text))
        confidences.append((start_s, end_s, f"{word.confidence:.4f}"))
        before_s = end_s
    if before_s < seconds:
        words.append((before_s, seconds, ""))
        confidences.append((before_s, seconds, ""))

    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.3f}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for number, (name, intervals) in enumerate((("words", words), ("confidence", confidences)), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {seconds:.3f}", f"        intervals: size = {len(intervals)}"]
        for position, (start_s, end_s, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{position}]:", f"            xmin = {start_s:.3f}"]
            lines += [f"            xmax = {end_s:.3f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


FORMATS = {
    "text": TranscriptFormat(".txt", True, write_text),
    "json": TranscriptFormat(".json", True, write_json),
    "srt": TranscriptFormat(".srt", False, write_srt),
    "vtt": TranscriptFormat(".vtt", False, write_webvtt),
    "ctm": TranscriptFormat(".ctm", True, write_ctm),
    "textgrid": TranscriptFormat(".TextGrid", False, write_textgrid),
}


def _cues(row: Row) -> list[_Cue]:
    """Words that are shown together: up to two lines, a few seconds, and no pause within them."""
    groups: list[list[list[Word]]] = []
    for word in timed_words(row):
        if not groups or _ends_before(groups[-1], word):
            groups.append([[word]])
        elif _fits(groups[-1][-1], word):
            groups[-1][-1].append(word)
        elif len(groups[-1]) < MAX_LINES:
            groups[-1].append([word])
        else:
            groups.append([[word]])

    cues = []
    for number, lines in enumerate(groups):
        start_s = lines[0][0].start_s or 0.0
        end_s = (lines[-1][-1].end_s or 0.0) + CUE_HOLD_S
        if number + 1 < len(groups):
            end_s = min(end_s, groups[number + 1][0][0].start_s or 0.0)
        cues.append(_Cue(start_s, max(end_s, start_s + LEAST_S), lines))
    return cues


def _ends_before(lines: list[list[Word]], word: Word) -> bool:
    """Whether a cue ends before a word: for a pause, or because it would last too long."""
    lasts_s = (word.end_s or 0.0) - (lines[0][0].start_s or 0.0)
    pause_s = (word.start_s or 0.0) - (lines[-1][-1].end_s or 0.0)
    return lasts_s > MAX_CUE_S or pause_s > CUE_PAUSE_S


def _fits(line: list[Word], word: Word) -> bool:
    text = joined_text([*(other.text for other in line), word.text])
    return _columns(text) <= MAX_LINE_CHARACTERS


def _columns(text: str) -> int:
    """How wide a text is shown: characters of Chinese, Japanese and Korean are twice as wide as others."""
    num_wide = sum(east_asian_width(character) in "WF" for character in text)
    return len(text) + num_wide


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clock(seconds: float, mark: str) -> str:
    """Hours, minutes, seconds and milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole_seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole_seconds:02d}{mark}{milliseconds:03d}"
