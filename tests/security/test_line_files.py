"""Files of lines that are written from texts of others: no text adds a line to them, or moves one."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import DataError
from data.shards.sources import Source, read_sources, write_sources
from data.text.language_model import write_language_model
from launcher.export.onnx_graphs import write_tokens
from launcher.inference.transcript_formats import FORMATS
from launcher.run_folder import RunFolder, write_lines
from model.search.ngram import read_arpa

# What ends a line, a field or a word for one reader or another: those of C, of Python and of Unicode.
ENDS = [
    "\n",
    "\r",
    "\r\n",
    "\t",
    "\v",
    "\f",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\x85",
    "\u2028",
    "\u2029",
    " ",
    "\u00a0",
    "\u3000",
]
HOSTILE = [
    *(end for end in ENDS),
    *(f"a{end}b" for end in ENDS),
    *(f"{end}{end}7{end}00:00:01,000 --> 00:00:02,000{end}x" for end in ENDS),
    "a --> b",
    "00:00:01.000 --> 00:00:02.000",
    '"\n        intervals [9]:',
    ";; a comment",
    "",
]


def lines_of(text: str) -> list[str]:
    """Its lines for the reader that sees most of them."""
    return text.splitlines()


def write(name: str, texts: list[str]) -> str:
    words: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        words.append({"word": text, "start_s": number + 0.1, "end_s": number + 0.5, "confidence": 0.5})
    text = " ".join(texts)
    row = {"audio": texts[0], "seconds": 9.0, "text": text, "n_best": [{"text": text, "words": words}]}
    return FORMATS[name].write(row)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_word_adds_a_line_or_a_field_to_a_transcript(text: str) -> None:
    words = [text, "one", "two"]
    assert len(lines_of(write("text", words))) == 1

    for line in lines_of(write("ctm", words)):
        assert re.fullmatch(r"\S+ 1 \d+\.\d{3} \d+\.\d{3} \S+ 0\.5000", line)
        assert len(line.split()) == 6

    grid = lines_of(write("textgrid", words))
    sizes = [int(line.split("= ")[1]) for line in grid if line.strip().startswith("intervals: size")]
    assert sum(line.strip().startswith("intervals [") for line in grid) == sum(sizes)
    assert all(line.count('"') % 2 == 0 for line in grid)

    for name in ("srt", "vtt"):
        written = write(name, words)
        cues = written.replace("WEBVTT\n\n", "").split("\n\n")
        # A cue is a block, has one arrow, and its lines are those of its words.
        assert len(cues) == written.count("-->")
        for cue in cues:
            assert len(lines_of(cue.strip("\n"))) <= 4
            assert "" not in lines_of(cue.strip("\n"))

    parsed = json.loads(write("json", words))
    assert parsed["n_best"][0]["words"][0]["word"] == text


def test_no_piece_of_a_tokenizer_moves_the_ids_of_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [*HOSTILE[:-1], "\u2581the", "e"]
    tokenizer: Any = SimpleNamespace(tokenizer=SimpleNamespace(pieces=pieces))
    write_tokens(tmp_path / "tokens.txt", tokenizer)
    content = (tmp_path / "tokens.txt").read_bytes().decode()
    rows = [line.split() for line in content.splitlines()]
    assert [row[-1] for row in rows] == [str(number) for number in range(len(pieces))]
    # But for those that hold a space, which stand there with it written out.
    assert all(len(row) == 2 for row in rows)
    assert [row[0] for row in rows[-2:]] == ["\u2581the", "e"]
    assert "hold white space" in caplog.text


@pytest.mark.parametrize("text", [text for text in HOSTILE if any(map(str.isspace, text)) or not text])
def test_no_word_ends_a_line_of_a_language_model(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="cannot stand in an ARPA file"):
        write_language_model([["a", text], ["b"]], 2, tmp_path / "a.arpa")


def test_words_of_a_language_model_that_look_like_its_headings_are_words(tmp_path: Path) -> None:
    words = ["\\end\\", "\\2-grams:", "ngram", "1=5", "\\data\\", "-1.0"]
    write_language_model([words], 2, tmp_path / "a.arpa")
    assert all(read_arpa(tmp_path / "a.arpa").knows(word) for word in words)


def test_no_name_of_a_file_adds_a_line_to_the_sources_of_shards(tmp_path: Path) -> None:
    sources = [Source(f"/{text}", 5) for text in HOSTILE]
    write_sources(tmp_path, sources)
    assert len((tmp_path / "sources.jsonl").read_bytes().decode().splitlines()) == len(sources)
    assert set(read_sources(tmp_path) or {}) == {source.path for source in sources}


def test_no_text_adds_a_line_to_events_and_lists_of_json(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"key": text} for text in HOSTILE])
    rows = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    assert [json.loads(row)["key"] for row in rows[:-1]] == HOSTILE
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for text in HOSTILE:
        run.append_event("failed", reason=text)
    assert [event["reason"] for event in run.events()] == HOSTILE
