"""Transcripts in the formats of subtitles, scoring and phonetics, read back by their own rules."""

import re
from itertools import pairwise

import pytest

from launcher.commands.transcribe_options import FORMAT_NAMES
from launcher.inference.transcript_formats import FORMATS, timed_words


def row_of(words: list[tuple], seconds: float = 10.0, audio: str = "my talk.wav") -> dict:
    rows = [dict(zip(("word", "start_s", "end_s", "confidence"), word, strict=True)) for word in words]
    text = " ".join(word[0] for word in words)
    return {"audio": audio, "seconds": seconds, "text": text, "n_best": [{"text": text, "words": rows}]}


SPOKEN = row_of([("да", 0.5, 0.7, 0.9), ("<b>&", 0.8, 1.4, 0.25), ('"так"', 5.0, 5.2, 1.0)])
# Times as searches may give them: none at all, equal, backwards, behind the end.
ODD = {
    "no word": row_of([]),
    "no times": row_of([("a", None, None, 0.5), ("b", None, None, 0.5)]),
    "no times between": row_of([("a", 1.0, 2.0, 0.5), ("b", None, None, 0.5), ("c", 2.0, 2.0, 0.5)]),
    "equal times": row_of([("a", 1.0, 1.0, 0.5), ("b", 1.0, 1.0, 0.5), ("c", 1.0, 1.2, 0.5)]),
    "backwards": row_of([("a", 3.0, 4.0, 0.5), ("b", 2.0, 2.5, 0.5)]),
    "at the end": row_of([("a", 9.99, 10.0, 0.5), ("b", 10.0, 10.0, 0.5)]),
    "shorter than a step": row_of([("a", 0.0, 0.0, 0.5)], seconds=0.0),
    "long words": row_of([("a" * 100, 0.0, 8.0, 0.5), ("b" * 50, 8.0, 9.0, 0.5)]),
}


def seconds_of(clock: str) -> float:
    hours, minutes, seconds = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_every_format_that_can_be_asked_for_is_written():
    assert set(FORMATS) == set(FORMAT_NAMES)


def test_srt_has_numbered_cues_that_end_at_pauses():
    assert FORMATS["srt"].write(SPOKEN) == (
        '1\n00:00:00,500 --> 00:00:01,900\nда <b>&\n\n2\n00:00:05,000 --> 00:00:05,700\n"так"\n'
    )


def test_webvtt_has_a_time_before_each_word_but_the_first_and_no_markup_of_the_speaker():
    assert FORMATS["vtt"].write(SPOKEN) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.900\nда <00:00:00.800>&lt;b&gt;&amp;\n\n"
        '00:00:05.000 --> 00:00:05.700\n"так"\n'
    )


def test_ctm_has_a_line_for_each_word_of_six_fields():
    assert FORMATS["ctm"].write(SPOKEN) == (
        "my_talk.wav 1 0.500 0.200 да 0.9000\n"
        "my_talk.wav 1 0.800 0.600 <b>& 0.2500\n"
        'my_talk.wav 1 5.000 0.200 "так" 1.0000\n'
    )


def test_a_textgrid_has_words_and_confidences_in_intervals_without_gaps():
    written = FORMATS["textgrid"].write(SPOKEN)
    assert written.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 10.000\n')
    texts = re.findall(r'text = "((?:[^"]|"")*)"\n', written)
    assert texts == ["", "да", "", "<b>&", "", '""так""', "", "", "0.9000", "", "0.2500", "", "1.0000", ""]


@pytest.mark.parametrize("name", ODD)
def test_odd_times_still_give_cues_and_intervals_that_go_forward(name):
    row = ODD[name]
    clocks = re.findall(r"(\S+) --> (\S+)", FORMATS["srt"].write(row))
    ends = [0.0]
    for start, end in clocks:
        assert ends[-1] <= seconds_of(start) < seconds_of(end)
        ends.append(seconds_of(end))
    for line in FORMATS["ctm"].write(row).splitlines():
        assert float(line.split()[3]) > 0
    grid = FORMATS["textgrid"].write(row)
    edges = [(float(a), float(b)) for a, b in re.findall(r"\]:\n +xmin = (\S+)\n +xmax = (\S+)\n", grid)]
    for tier in (edges[: len(edges) // 2], edges[len(edges) // 2 :]):
        assert tier[0][0] == 0
        assert all(left[1] == right[0] for left, right in pairwise(tier))
        assert all(start < end for start, end in tier)
    for word in row["n_best"][0]["words"]:
        assert word["word"] in grid
    starts = [word.start_s for word in timed_words(row)]
    assert starts == sorted(starts)


# Words of one length fill lines evenly; those of others leave rests, of which two lines may become three.
@pytest.mark.parametrize("lengths", [(7,), (20, 14), (1, 30, 3), (41, 2), (13, 29, 40)])
def test_a_long_talk_becomes_cues_of_two_lines(lengths):
    words = []
    for number in range(60):
        text = "слово" + "о" * (lengths[number % len(lengths)] - 5)
        words.append((text, 0.3 * number, 0.3 * number + 0.2, 0.9))
    cues = FORMATS["srt"].write(row_of(words, seconds=20.0)).split("\n\n")
    assert len(cues) > 2
    for cue in cues:
        _, clock, *lines = cue.strip().splitlines()
        start, end = map(seconds_of, clock.split(" --> "))
        assert end - start <= 7.5
        assert len(lines) <= 2
        assert all(len(line) <= 42 for line in lines)
    assert sum(cue.count("слово") for cue in cues) == 60


@pytest.mark.parametrize("text", ["你好世界今天天气很好我们去公园吧" * 4, "สวัสดีชาวโลก" * 9])
@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_subtitles_of_writing_without_spaces_have_none_and_break_between_characters(name, text):
    words = [(character, 0.05 * number, 0.05 * number + 0.05, 0.9) for number, character in enumerate(text)]
    blocks = FORMATS[name].write(row_of(words, seconds=20.0)).split("\n\n")
    shown = []
    for block in blocks:
        lines = [re.sub("<[^>]*>", "", line) for line in block.strip().splitlines()]
        shown.append([line for line in lines if line[:1] in set(text)])
    assert "".join(line for lines in shown for line in lines) == text
    wide = text.startswith("你")
    for lines in shown:
        assert len(lines) <= 2
        assert all(len(line) <= (21 if wide else 42) for line in lines)


def test_both_subtitles_break_their_lines_alike():
    words = [(f"word{number}", 0.3 * number, 0.3 * number + 0.2, 0.9) for number in range(40)]
    row = row_of(words, seconds=20.0)
    written = re.sub("<[^>]*>", "", FORMATS["vtt"].write(row)).replace("WEBVTT\n\n", "").splitlines()
    expected = [line for line in FORMATS["srt"].write(row).splitlines() if not line.isdecimal()]
    assert [line for line in written if "-->" not in line] == [line for line in expected if "-->" not in line]
