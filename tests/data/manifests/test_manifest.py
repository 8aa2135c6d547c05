"""Reading audio and manifests: what comes back, and with what reason the rest is refused."""

import csv
import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data.audio import Clip, Utterance, read_audio
from data.errors import DataError
from data.manifests.columns import COLUMNS
from data.manifests.manifest import read_manifest

RATE_HZ = 16000


def tone(seconds: float, frequency_hz: float = 440.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE_HZ)
    soundfile.write(tmp_path / "b.flac", tone(2.0), RATE_HZ)
    return tmp_path


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_clip(clip: Clip) -> Utterance:
    return Utterance("k", (clip,), "text", "train")


# --- audio -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("rate_hz", [8000, 48000])
def test_any_format_and_rate_is_read_at_the_asked_rate(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = tmp_path / f"a.{suffix}"
    formats = {"opus": {"format": "OGG", "subtype": "OPUS"}}
    soundfile.write(path, tone(1.0, rate_hz=rate_hz), rate_hz, **formats.get(suffix, {}))
    waveform = read_audio(one_clip(Clip(path)), RATE_HZ)
    assert waveform.dtype == np.float32
    # MP3 pads to whole frames of 1152 samples and adds the codec's delay.
    assert len(waveform) == pytest.approx(RATE_HZ, abs=5000 if suffix == "mp3" else 2)
    spectrum = np.abs(np.fft.rfft(waveform[2000:10000]))
    assert np.argmax(spectrum) * RATE_HZ / 8000 == pytest.approx(440, abs=3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(0.5), np.zeros(RATE_HZ // 2, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE_HZ, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(one_clip(Clip(tmp_path / "a.wav")), RATE_HZ), tone(0.5) / 2, atol=1e-7)


@given(start=st.integers(0, 15000), length=st.integers(1, 1000))
def test_a_clip_is_the_slice_of_its_file(tmp_path_factory: pytest.TempPathFactory, start: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "whole.wav"
    if not path.exists():
        soundfile.write(path, tone(1.0), RATE_HZ, subtype="FLOAT")
    clip = Clip(path, start / RATE_HZ, length / RATE_HZ)
    np.testing.assert_array_equal(read_audio(one_clip(clip), RATE_HZ), tone(1.0)[start : start + length])


def test_clips_are_joined_with_their_silences(folder: Path) -> None:
    clips = (Clip(folder / "a.wav"), Clip(folder / "b.flac", 0.5, 0.25), Clip(folder / "a.wav", 0.9))
    waveform = read_audio(Utterance("k", clips, "t", "train", gaps_s=(0.1, 0.2)), RATE_HZ)
    assert len(waveform) == round((1.0 + 0.1 + 0.25 + 0.2 + 0.1) * RATE_HZ)
    assert not waveform[RATE_HZ : RATE_HZ + 1600].any()
    assert waveform[RATE_HZ + 1600 :][:4000].any()


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(Path("missing.wav")), "no audio file"),
        (Clip(Path("a.wav"), start_s=1.5), "start 1.5 s lies outside"),
        (Clip(Path("a.wav"), start_s=0.5, seconds=0.7), "end 1.2 s lies outside"),
        (Clip(Path("text.wav")), "no audio"),
        (Clip(Path("loud.wav")), "peak"),
        (Clip(Path("nan.wav")), "peak"),
    ],
)
def test_audio_that_cannot_be_used_is_named_with_its_key(folder: Path, clip: Clip, reason: str) -> None:
    (folder / "text.wav").write_text("this is not audio")
    soundfile.write(folder / "loud.wav", tone(0.1) * 30000, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "nan.wav", np.full(1600, np.nan), RATE_HZ, subtype="FLOAT")
    placed = Clip(folder / clip.path, clip.start_s, clip.seconds)
    with pytest.raises(DataError, match=rf"Utterance k .*{reason}"):
        read_audio(one_clip(placed), RATE_HZ)


def test_a_file_that_breaks_off_is_an_error_and_not_a_shorter_utterance(folder: Path) -> None:
    whole = (folder / "b.flac").read_bytes()
    (folder / "b.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"Utterance k .*b\.flac"):
        read_audio(one_clip(Clip(folder / "b.flac")), RATE_HZ)


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a/b"])
def test_a_key_that_would_break_a_tar_member_name_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="utterance key"):
        Utterance(key, (Clip(Path("a.wav")),), "t", "train")


# --- manifests ---------------------------------------------------------------------------------------


def test_jsonl_rows_become_utterances(folder: Path) -> None:
    path = write_jsonl(
        folder / "m.jsonl",
        [
            {"id": "one", "audio": "a.wav", "text": " Hello ", "split": "dev", "speaker": 7, "lang": "en"},
            {"audio_filepath": "b.flac", "transcript": "there", "offset": 0.5, "duration": "1.25"},
        ],
    )
    utterances, rejected = read_manifest(path)
    assert rejected == []
    assert utterances == [
        Utterance("one", (Clip(folder / "a.wav"),), "Hello", "dev", "7", "en", line=1),
        Utterance("b_00000500ms", (Clip(folder / "b.flac", 0.5, 1.25),), "there", "", line=2),
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.tsv", "\t")])
def test_tables_are_read_by_their_header_and_other_columns_ignored(folder: Path, name: str, delimiter: str) -> None:
    with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, escapechar="\\")
        writer.writerows([["up_votes", "sentence", "path"], ["2", "good morning", "a.wav"]])
    utterances, rejected = read_manifest(folder / name)
    assert (utterances[0].text, utterances[0].key, rejected) == ("good morning", "a", [])


def test_quotes_in_a_tsv_are_text(folder: Path) -> None:
    (folder / "m.tsv").write_text('path\tsentence\na.wav\t"Stop\nb.flac\the said\n')
    assert [utterance.text for utterance in read_manifest(folder / "m.tsv")[0]] == ['"Stop', "he said"]


BAD_ROWS = [
    ({"audio": "none.wav", "text": "t"}, "no audio file"),
    ({"audio": "text.wav", "text": "t"}, "not readable as audio"),
    ({"audio": "a.wav", "text": "  "}, "text is empty"),
    ({"audio": "a.wav"}, "text is empty"),
    ({"text": "t"}, "names no audio"),
    ({"audio": "a.wav", "text": 5}, "column text holds 5"),
    ({"audio": ["a.wav"], "text": "t"}, "column audio holds"),
    ({"audio": "a.wav", "text": "t", "start": 3.0}, "start 3 s lies outside"),
    ({"audio": "a.wav", "text": "t", "start": -1}, "start -1 s lies outside"),
    ({"audio": "a.wav", "text": "t", "start": "soon"}, "column start holds 'soon'"),
    ({"audio": "a.wav", "text": "t", "duration": 0}, "not positive"),
    ({"audio": "a.wav", "text": "t", "duration": 9}, "end 9 s lies outside"),
    ({"audio": "a.wav", "text": "t", "duration": True}, "column duration holds True"),
    ({"audio": "a.wav", "text": "t", "split": "../up"}, "split '../up'"),
    ({"audio": "a.wav", "path": "b.flac", "text": "t"}, "audio and path both give the audio"),
    ({"audio": "b.flac", "text": "t", "id": "good"}, "key good is already that of line 1"),
    (["a.wav", "t"], "JSON list"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_an_unusable_row_comes_back_with_its_line_and_the_reason(folder: Path, row: object, reason: str) -> None:
    (folder / "text.wav").write_text("this is not audio")
    path = write_jsonl(folder / "m.jsonl", [{"id": "good", "audio": "a.wav", "text": "t"}, row])
    utterances, rejected = read_manifest(path)
    assert [utterance.key for utterance in utterances] == ["good"]
    assert [bad.line for bad in rejected] == [2]
    assert reason in rejected[0].reason


def test_a_line_that_is_not_json_does_not_hide_the_others(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"audio": "a.wav"\n\n{"audio": "a.wav", "text": "t"}\n')
    utterances, rejected = read_manifest(folder / "m.jsonl")
    assert [utterance.line for utterance in utterances] == [3]
    assert rejected[0].line == 1
    assert "not JSON" in rejected[0].reason


def test_a_table_row_of_another_width_is_rejected(folder: Path) -> None:
    (folder / "m.csv").write_text("audio,text\na.wav,one, two\nb.flac\na.wav,fine\n")
    utterances, rejected = read_manifest(folder / "m.csv")
    assert [utterance.text for utterance in utterances] == ["fine"]
    assert [bad.line for bad in rejected] == [2, 3]


@given(st.lists(st.sampled_from(["good", *range(len(BAD_ROWS))]), max_size=12))
def test_every_row_is_either_used_or_rejected(tmp_path_factory: pytest.TempPathFactory, kinds: list) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("a.wav", "b.flac"):
        if not (folder / name).exists():
            soundfile.write(folder / name, tone(1.0), RATE_HZ)
    rows = [
        {"id": f"r{line}", "audio": "a.wav", "text": "t"} if kind == "good" else BAD_ROWS[kind][0]
        for line, kind in enumerate(kinds, 1)
    ]
    utterances, rejected = read_manifest(write_jsonl(folder / "m.jsonl", rows))
    lines = [utterance.line for utterance in utterances] + [bad.line for bad in rejected]
    assert sorted(lines) == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("m.csv", b"file,words\na.wav,t\n", "no text column"),
        ("m.csv", b"", "names nothing"),
        ("m.xlsx", b"audio", "not a manifest"),
        ("m.jsonl", "привет".encode("cp1251"), "not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_refused_as_a_whole(folder: Path, name: str, content: bytes, seen: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=seen):
        read_manifest(folder / name)


def test_rows_without_a_text_are_used_where_they_are_wanted(folder: Path) -> None:
    rows = [{"audio": "a.wav"}, {"audio": "b.flac", "text": " "}, {"audio": "a.wav", "id": "x", "text": "t"}, {}]
    path = write_jsonl(folder / "m.jsonl", rows)
    utterances, rejected = read_manifest(path, untranscribed=True)
    assert [utterance.text for utterance in utterances] == ["", "", "t"]
    assert [row.line for row in rejected] == [4]
    assert [utterance.text for utterance in read_manifest(path)[0]] == ["t"]
    (folder / "m.csv").write_text("audio\na.wav\n")
    assert [utterance.text for utterance in read_manifest(folder / "m.csv", untranscribed=True)[0]] == [""]


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest .*gone\.csv"):
        read_manifest(tmp_path / "gone.csv")


# --- what users' manifests hold ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "used", "rejected_lines"),
    [
        # The quote of line 2 swallowed all that follows it.
        ('audio,text\na.wav,"one\nb.flac,two\na.wav,\n', ["two"], [2, 4]),
        ('audio,text\n"a.wav,one\nb.flac,two\n', ["two"], [2]),
        ('audio,text\na.wav,"one\nb.flac,"two\n', [], [2, 3]),
        ('audio,text\na.wav,"one\nb.flac,two"\n', ['two"'], [2]),
        # A strict end: "one"two would be read as onetwo.
        ('audio,text\na.wav,"one"two\nb.flac,two\n', ["two"], [2]),
        ('audio,text\na.wav,"one\ntwo"\nb.flac,two\n', ["one\ntwo", "two"], []),
        ('audio,text\na.wav,"say ""one"", two"\n\nb.flac,two\n', ['say "one", two', "two"], []),
    ],
)
def test_an_open_quote_swallows_no_row(folder: Path, content: str, used: list[str], rejected_lines: list[int]) -> None:
    (folder / "m.csv").write_text(content)
    utterances, rejected = read_manifest(folder / "m.csv")
    assert [utterance.text for utterance in utterances] == used
    assert [row.line for row in rejected] == rejected_lines


@given(
    texts=st.lists(st.text('ab ,"\t\\', min_size=1, max_size=6), max_size=8),
    suffix=st.sampled_from(["csv", "tsv", "jsonl"]),
)
def test_rows_in_are_rows_used_and_rows_rejected_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], suffix: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    soundfile.write(folder / "a.wav", tone(0.01), RATE_HZ)
    if suffix == "jsonl":
        lines = [json.dumps({"audio": "a.wav", "id": f"r{line}", "text": text}) for line, text in enumerate(texts)]
    else:
        # As written by hand: nothing is quoted, whatever it holds.
        delimiter = "," if suffix == "csv" else "\t"
        lines = [delimiter.join(("a.wav", f"r{line}", text)) for line, text in enumerate(texts)]
        lines.insert(0, delimiter.join(("audio", "id", "text")))
    path = folder / f"m.{suffix}"
    path.write_text("".join(line + "\n" for line in lines))
    utterances, rejected = read_manifest(path)
    first = 1 if suffix == "jsonl" else 2
    seen = sorted([row.line for row in utterances] + [row.line for row in rejected])
    assert seen == list(range(first, first + len(texts)))


ANY_CELL = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    st.sampled_from(["a.wav", "a\0.wav", "/", ".", "x" * 5000, "\ud83d", "\ufffd", "-1", "1e999", "0x10", "١", "१.५"]),
    st.sampled_from([10**400, -(10**400), 1e300, -0.0, 5e-324, 2**63, [], {}, [[]], {"a": [1]}, ["a.wav"]]),
)


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*(a for c in COLUMNS.values() for a in c), "x"]), ANY_CELL), max_size=6
    )
)
def test_no_cell_whatever_stops_the_reading_of_the_others(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    soundfile.write(folder / "a.wav", tone(0.05), RATE_HZ)
    good = {"audio": "a.wav", "text": "good", "id": "good"}
    path = write_jsonl(folder / "m.jsonl", [good, *({"audio": "a.wav", "text": "t"} | row for row in rows)])
    utterances, rejected = read_manifest(path)
    lines = [row.line for row in utterances] + [row.line for row in rejected]
    assert sorted(lines) == list(range(1, len(rows) + 2))
    assert utterances[0].text == "good"
    for row in rejected:
        assert len((row.reason + row.path).encode()) < 6000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("9" * 5000, "not JSON"),
        ("9" * 4000, "expected a number"),
        ("[" * 200_000 + "]" * 200_000, "not JSON"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "not JSON"),
        ("[" * 900 + "]" * 900, "column start holds a list"),
        ("1e999", "expected a number"),
        ("NaN", "expected a number"),
    ],
)
def test_numbers_without_end_and_values_without_bottom_are_rejected_rows(folder: Path, value: str, reason: str) -> None:
    row = '{"audio": "a.wav", "text": "t", "start": %s}\n'
    (folder / "m.jsonl").write_text(row % value + row % "0.5")
    utterances, rejected = read_manifest(folder / "m.jsonl")
    assert [utterance.line for utterance in utterances] == [2]
    assert reason in rejected[0].reason
    assert len(rejected[0].reason) < 300


@pytest.mark.parametrize(
    "column", ["start_ms", "END_MS", "offset_samples", "begin_frame", "frame_offset", "stop_milliseconds", "end_sample"]
)
def test_a_place_in_other_units_than_seconds_is_not_passed_over(folder: Path, column: str) -> None:
    rows = [{"audio": "a.wav", "text": "t", column: 500}, {"audio": "b.flac", "text": "t", column: None}]
    utterances, rejected = read_manifest(write_jsonl(folder / "m.jsonl", rows))
    assert [utterance.line for utterance in utterances] == [2]
    assert f"column {column.lower()} is not in seconds" in rejected[0].reason


def test_a_text_of_which_a_character_was_lost_is_not_a_transcript(folder: Path) -> None:
    rows = [{"audio": "a.wav", "text": "caf\ufffd"}, {"audio": "b.flac", "text": "café"}]
    utterances, rejected = read_manifest(write_jsonl(folder / "m.jsonl", rows))
    assert [utterance.text for utterance in utterances] == ["café"]
    assert "a character that was lost" in rejected[0].reason


def test_columns_are_read_whatever_their_case_and_a_second_one_is_not_passed_over(folder: Path) -> None:
    (folder / "m.csv").write_text("ID, Wav ,Wrd\none,a.wav,hello\n")
    assert read_manifest(folder / "m.csv")[0][0].text == "hello"
    rows = [{"Audio": "a.wav", "TEXT": "t"}, {"audio": "b.flac", "text": "t", "Text": "u"}]
    utterances, rejected = read_manifest(write_jsonl(folder / "m.jsonl", rows))
    assert [utterance.line for utterance in utterances] == [1]
    assert "the column 'text' twice" in rejected[0].reason


@pytest.mark.parametrize(
    ("columns", "clip"),
    [
        ({"start": 0.25, "end": 0.75}, ("a.wav", 0.25, 0.5, None)),
        ({"start_s": 0.25, "end_s": "0.75", "duration": 0.5}, ("a.wav", 0.25, 0.5, None)),
        ({"offset": 0.25, "duration": 0.5}, ("a.wav", 0.25, 0.5, None)),
        ({"end": 0.5}, ("a.wav", 0.0, 0.5, None)),
        ({"channel": 0}, ("a.wav", 0.0, None, 0)),
    ],
)
def test_columns_of_other_tools_are_read(folder: Path, columns: dict, clip: tuple) -> None:
    path = write_jsonl(folder / "m.jsonl", [{"audio": "a.wav", "text": "t", **columns}])
    utterances, _ = read_manifest(path)
    assert utterances[0].clips == (Clip(folder / clip[0], *clip[1:]),)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"start": 0.5, "end": 0.25}, "end 0.25 s is not behind"),
        ({"end": 0.5, "duration": 0.25}, "differ"),
        ({"end": 3}, "end 3 s lies outside"),
        ({"channel": 1}, "channel 1 is not in"),
        ({"channel": -1}, "channel -1 is not"),
        ({"channel": "left"}, "column channel holds 'left'"),
        ({"text": "t\ud83d"}, "lone surrogate"),
        ({"speaker": "\udcff"}, "lone surrogate"),
        ({"audio": "a sentence " * 40}, "no audio file"),
        ({"audio": "a\0.wav"}, "no audio file"),
        ({"audio": "\udcff.wav"}, "no audio file"),
    ],
)
def test_a_row_that_contradicts_itself_is_rejected(folder: Path, columns: dict, reason: str) -> None:
    path = write_jsonl(folder / "m.jsonl", [{"audio": "a.wav", "text": "t", **columns}])
    utterances, rejected = read_manifest(path)
    assert utterances == []
    assert reason in rejected[0].reason
    assert rejected[0].reason.encode()


def test_a_channel_of_a_call_is_read_alone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "call.wav", np.stack([tone(0.1), tone(0.1) / 2], axis=1), RATE_HZ, subtype="FLOAT")
    rows = [{"audio": "call.wav", "text": "t", "channel": channel} for channel in (0, 1)]
    utterances, _ = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows))
    assert [utterance.key for utterance in utterances] == ["call_ch0", "call_ch1"]
    np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), tone(0.1) / 2)


def test_unknown_columns_are_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"audio": name, "text": "t", "snr": 1, "tempo": 2} for name in ("a.wav", "b.flac")]
    with caplog.at_level(logging.WARNING):
        read_manifest(write_jsonl(folder / "m.jsonl", rows))
    assert [record.getMessage().count("snr, tempo") for record in caplog.records] == [1]


def test_a_name_given_twice_is_no_row(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"audio": "a.wav", "text": "one", "text": "two"}\n')
    assert "twice" in read_manifest(folder / "m.jsonl")[1][0].reason
    (folder / "m.csv").write_text("audio,text,text\na.wav,one,two\n")
    with pytest.raises(DataError, match="column text twice"):
        read_manifest(folder / "m.csv")


def test_a_row_that_is_not_utf_8_does_not_hide_the_others(folder: Path) -> None:
    (folder / "m.tsv").write_bytes(b"audio\ttext\na.wav\tcaf\xe9\nb.flac\tfine\n")
    utterances, rejected = read_manifest(folder / "m.tsv")
    assert [utterance.text for utterance in utterances] == ["fine"]
    assert (rejected[0].line, rejected[0].reason) == (2, "it is not UTF-8")


COLLIDING = [
    ("हिन्दी कि.wav", "हिन्दी की.wav", "हिन्दी कु.wav"),
    ("rec 1.wav", "rec_1.wav", "rec(1).wav", "rec-1.wav"),
    ("part.1", "part.2", "part.3"),
    ("same.wav", "same.flac", "same.wav.wav"),
    ("a/b.wav", "a_b.wav", "./a/b.wav2"),
]


@pytest.mark.parametrize("names", COLLIDING)
def test_distinct_recordings_have_distinct_readable_keys(tmp_path: Path, names: tuple[str, ...]) -> None:
    soundfile.write(tmp_path / "any.wav", tone(0.01), RATE_HZ)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "any.wav").read_bytes())
    path = write_jsonl(tmp_path / "m.jsonl", [{"audio": name, "text": "t"} for name in names])
    utterances, rejected = read_manifest(path)
    assert rejected == []
    keys = [utterance.key for utterance in utterances]
    assert len(set(keys)) == len(names)
    assert [key[:2] for key in keys] == [names[0][:2].replace("/", "_")] * len(names)
    assert [utterance.key for utterance in read_manifest(path)[0]] == keys


@pytest.mark.parametrize(("on_disk", "in_manifest"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_is_found_however_its_accents_are_written(tmp_path: Path, on_disk: str, in_manifest: str) -> None:
    name = "Chương é й.wav"
    soundfile.write(tmp_path / unicodedata.normalize(on_disk, name), tone(0.01), RATE_HZ)
    rows = [{"audio": unicodedata.normalize(in_manifest, name), "text": "t"}]
    utterances, _ = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows))
    assert utterances[0].key == "Chương_é_й"
    assert len(read_audio(utterances[0], RATE_HZ)) == 160


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.01), RATE_HZ)
    try:
        (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"a\xe9.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    utterances, _ = read_manifest(write_jsonl(tmp_path / "m.jsonl", [{"audio": "a\udce9.wav", "text": "t"}]))
    assert utterances[0].key == "a_"
    assert len(read_audio(utterances[0], RATE_HZ)) == 160


@pytest.mark.parametrize("name", ["parts\\\\a.wav", ".\\\\parts\\\\a.wav"])
def test_a_path_with_the_backslashes_of_windows_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "parts").mkdir()
    soundfile.write(tmp_path / "parts" / "a.wav", np.full(16000, 0.1), 16000)
    (tmp_path / "m.csv").write_text(f"audio,text\n{name}, one\n".replace("\\\\", "\\"))
    utterances, rejected = read_manifest(tmp_path / "m.csv")
    assert [utterance.key for utterance in utterances] == ["parts_a"]
    assert not rejected


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ("audio;text\na.wav;one\n", "';'"),
        ("sep=;\naudio;text\na.wav;one\n", "';'"),
        ("audio\ttext\na.wav\tone\n", "'\\t'"),
        ("a.wav|one\n", "'|'"),
    ],
)
def test_a_table_of_a_spreadsheet_with_other_separators_is_named_as_one(folder: Path, content: str, seen: str) -> None:
    (folder / "m.csv").write_text(content)
    with pytest.raises(DataError, match="Save it with commas") as error:
        read_manifest(folder / "m.csv")
    assert seen in str(error.value)


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e13", "Infinity", "NaN", "1" + "0" * 300])
@pytest.mark.parametrize("column", ["start", "end", "duration", "channel"])
def test_a_number_beyond_all_recordings_is_a_rejected_row(tmp_path, column, number):
    (tmp_path / "m.jsonl").write_text(f'{{"audio": "a.wav", "text": "x", "{column}": {number}}}\n')
    utterances, rejected = read_manifest(tmp_path / "m.jsonl")
    assert utterances == []
    assert len(rejected) == 1
