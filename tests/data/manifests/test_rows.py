"""Rows of manifest files: whatever a file holds, each row is used as written or rejected by its line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.manifests.rows import read_rows

NEEDED = (("audio",), ("text",))


def rows_of(path: Path, content: str | bytes) -> list[tuple[int, object]]:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    rows = read_rows(path, NEEDED if path.suffix in (".csv", ".tsv") else ())
    return [(row.line, row.content) for row in rows]


def texts_of(rows: list[tuple[int, object]]) -> list[object]:
    return [content["text"] if isinstance(content, dict) else None for _, content in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_lines_end_as_on_any_system(tmp_path: Path, suffix: str, end: str) -> None:
    separator = "\t" if suffix == "tsv" else ","
    lines = [separator.join(cells) for cells in (("audio", "text"), ("a.wav", "one"), ("b.wav", "two"))]
    if suffix == "jsonl":
        lines = [json.dumps({"text": text}) for text in ("one", "two")]
    for last in ("", end, end * 3):
        assert texts_of(rows_of(tmp_path / f"m.{suffix}", end.join(lines) + last)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        # A text with a carriage return must not lose what stands behind it.
        ("m.tsv", "audio\ttext\na.wav\thello\rworld\nb.wav\tfine\n", [2]),
        ("m.csv", "audio,text\na.wav,hello\rworld\nb.wav,fine\n", [2]),
        ("m.tsv", "audio\ttext\n\t\nb.wav\tfine\n", []),
        ("m.csv", "audio,text\n\n  \nb.wav,fine\n", []),
        ("m.csv", 'audio,text\n""\nb.wav,fine\n', [2]),
        ("m.csv", f"audio,text\na.wav,{'x' * 140_000}\nb.wav,fine\n", [2]),
        ("m.jsonl", "\n[]\nnull\n1\n{\n}\n{'text': 1}\n" + '{"text": "fine"}\n', [2, 3, 4, 5, 6, 7]),
        ("m.jsonl", '{"text": 1e5}{"text": "two"}\n{"text": "fine"}\n', [1]),
        ("m.jsonl", '\ufeff{"text": "fine"}\n\ufeff{"text": "two files joined"}\n', [2]),
        ("m.jsonl", '{"text": ' + "9" * 5000 + '}\n{"text": "fine"}\n', [1]),
        ("m.jsonl", "[" * 200_000 + "]" * 200_000 + '\n{"text": "fine"}\n', [1]),
        ("m.jsonl", '{"a": ' * 200_000 + "1" + "}" * 200_000 + '\n{"text": "fine"}\n', [1]),
        ("m.json", '[{"text": "\\ud800", \n"x": [1, {"y": "]"}]},\n nonsense,\n {"text": "fine"}]', [3]),
        ("m.json", '[{"text": ' + "9" * 5000 + '},\n{"text": "fine"}]\n', [1]),
        ("m.json", '[{"text": ' + "[" * 200_000 + "]" * 200_000 + '},\n{"text": "fine"}]\n', [1]),
        ("m.json", '[{"text": "fine"}, {"text": "cut', [1]),
        ("m.json", '[{"text": "fine"}] {"text": "behind"}', [1]),
        ("m.json", '[,{"text": "fine"},]', [1, 1]),
        ("m.json", "[\n]\n", []),
        # NeMo calls files of one object a line .json too.
        ("m.json", '{"text": "fine"}\nnonsense\n{"text": "fine"}\n', [2]),
    ],
)
def test_a_row_that_cannot_be_read_neither_vanishes_nor_takes_others_with_it(
    tmp_path: Path, name: str, content: str, lines: list[int]
) -> None:
    rows = rows_of(tmp_path / name, content)
    assert [line for line, row in rows if isinstance(row, str)] == lines
    used = [text for text in texts_of(rows) if text not in (None, "", "\ud800")]
    assert used == ["fine"] * content.count('"fine"' if "json" in name else "fine")


@settings(deadline=None)
@given(
    texts=st.lists(st.text('ab,"\t\\\r\n\0\u2028\u0085\x1c[]{}', max_size=8), max_size=6),
    blanks=st.lists(st.booleans(), min_size=6, max_size=6),
    indent=st.sampled_from([None, 1]),
)
def test_json_gives_back_every_text_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], blanks: list[bool], indent: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [{"text": text, "nested": [{"text": text}]} for text in texts]
    array = json.dumps(rows, indent=indent, ensure_ascii=False)
    assert texts_of(rows_of(folder / "m.json", array)) == texts
    lines = ""
    for row, is_blank in zip(rows, blanks, strict=False):
        lines += json.dumps(row, ensure_ascii=False) + ("\n \n" if is_blank else "\n")
    for name in ("m.jsonl", "m.json"):
        assert texts_of(rows_of(folder / name, lines)) == texts


def test_compressed_manifests_are_read_and_torn_ones_named(tmp_path: Path) -> None:
    content = gzip.compress(b"Audio, TEXT \na.wav,one\n")
    (tmp_path / "m.csv.gz").write_bytes(content)
    assert [row.content for row in read_rows(tmp_path / "m.csv.gz", NEEDED)] == [{"audio": "a.wav", "text": "one"}]
    for torn in (content[:-12], b"audio,text\n", b""):
        (tmp_path / "m.csv.gz").write_bytes(torn)
        with pytest.raises(DataError, match=r"m\.csv\.gz cannot be read|has no audio column"):
            list(read_rows(tmp_path / "m.csv.gz", NEEDED))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1251"])
@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_a_table_in_another_encoding_is_refused_in_words_that_a_terminal_can_print(
    tmp_path: Path, name: str, encoding: str
) -> None:
    with pytest.raises(DataError) as refusal:
        rows_of(tmp_path / name, "аудио,текст\na.wav,привет\n".encode(encoding))
    assert str(refusal.value).encode()
    assert str(tmp_path / name) in str(refusal.value)


def test_a_small_file_that_expands_without_end_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.manifests.rows.MAX_BYTES", 2**20)
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b" " * 2**24))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"m\.jsonl\.gz holds more than 1048576 bytes of text"):
        list(read_rows(tmp_path / "m.jsonl.gz", ()))
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_an_object_over_several_lines_is_not_a_row_for_each_of_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"u1": {"wav": "a.wav", "wrd": "one"}}, indent=2))
    with pytest.raises(DataError, match="an object over several lines"):
        list(read_rows(tmp_path / name, NEEDED))


def test_a_small_gzip_of_very_much_text_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.manifests.rows.MAX_COMPRESSION", 10)
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b"a" * 2**26, 1))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds more than"):
            read_rows(path, ())
        # What lies behind the ten megabytes that a megabyte may hold is not decompressed.
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["\n", "\r", "a\n"])
def test_very_many_short_lines_are_refused_before_each_takes_memory(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.manifests.rows.MAX_LINES", 100_000)
    path = tmp_path / "m.jsonl"
    path.write_text(end * 5_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 100000 lines"):
            read_rows(path, ())
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["folder", "mine.jsonl.zip", "mine.xlsx"])
def test_a_manifest_that_is_not_there_is_said_to_be_absent_and_not_to_have_a_wrong_name(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(DataError, match="There is no manifest"):
        read_rows(tmp_path / name, ())
