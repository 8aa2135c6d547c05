"""New sets made of others: the same audio and texts, keys unique, lineage recorded, and what is read never touched."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import Said, some_speech, speech, write_set

from data.errors import DataError
from data.shard_tools.play import play
from data.shard_tools.rewriting import Candidate, Command, rewrite
from data.shard_tools.selection import Filter, FilterConfig, SampleConfig, read_keys
from data.shard_tools.survey import survey
from data.shards.index import read_summary
from data.shards.reader import ShardReader
from data.shards.writer import read_index

RULES = {"version": 4, "lower": True}
RESHARD = Command("reshard", {}, shard_seconds=5.0)


def content_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def utterances_of(split: Path) -> dict[str, tuple]:
    """What a split holds, by key."""
    index = read_index(split)
    reader = ShardReader(index)
    found = {}
    for utterance in range(len(index)):
        example = reader.read(utterance)
        found[example.key] = (example.waveform.tobytes(), example.text, example.speaker, example.language)
    assert len(found) == len(index)
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rewriting") / "corpus"
    write_set(folder / "train", some_speech(20, "t"), RULES)
    write_set(folder / "dev", some_speech(5, "d"), RULES)
    return folder


@pytest.fixture
def untouched(corpus):
    """Fails where the set that is read has changed."""
    before = content_of(corpus)
    yield
    assert content_of(corpus) == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("seed", [None, 7])
def test_resharding_changes_the_shards_and_nothing_else(corpus, tmp_path, seed):
    command = Command("reshard", {}, shard_seconds=5.0, seed=seed)
    report = rewrite([corpus], tmp_path / "new", command)
    assert report.splits.keys() == {"train", "dev"}
    for split in ("train", "dev"):
        assert utterances_of(tmp_path / "new" / split) == utterances_of(corpus / split)
        assert survey(tmp_path / "new" / split).findings == []
    assert report.splits["train"].shards > len(read_index(corpus / "train").names)
    same_order = list(read_index(tmp_path / "new" / "train").keys()) == list(read_index(corpus / "train").keys())
    assert same_order == (seed is None)


@pytest.mark.usefixtures("untouched")
def test_a_new_set_says_of_what_it_was_made_and_keeps_the_rules_of_its_texts(corpus, tmp_path):
    rewrite([corpus], tmp_path / "first", Command("sample", {"share": 0.5}, 5.0, choose=SampleConfig(share=0.5).choose))
    rewrite([tmp_path / "first"], tmp_path / "second", RESHARD)
    summary = read_summary(tmp_path / "second" / "train")
    assert summary["text_rules"] == RULES
    lineage = summary["lineage"]
    assert lineage["command"] == "reshard"
    (parent,) = lineage["sources"]
    assert parent["fingerprint"] == read_index(tmp_path / "first" / "train").fingerprint
    assert parent["lineage"]["command"] == "sample"
    assert parent["lineage"]["settings"]["share"] == 0.5
    (origin,) = parent["lineage"]["sources"]
    assert origin["fingerprint"] == read_index(corpus / "train").fingerprint
    assert origin["folder"] == str(corpus / "train")
    assert origin["utterances"] == 20


@pytest.mark.usefixtures("untouched")
def test_the_same_command_again_writes_nothing_and_another_is_refused(corpus, tmp_path):
    rewrite([corpus], tmp_path / "new", RESHARD)
    before = content_of(tmp_path / "new")
    assert set(rewrite([corpus], tmp_path / "new", RESHARD).kept) == {"train", "dev"}
    with pytest.raises(DataError, match="not made by this command of these sets"):
        rewrite([corpus], tmp_path / "new", Command("reshard", {}, shard_seconds=9.0))
    with pytest.raises(DataError, match="not made by this command of these sets"):
        rewrite([corpus / "train"], tmp_path / "new", Command("sample", {"hours": 1}, 5.0))
    assert content_of(tmp_path / "new") == before


def test_what_was_stopped_half_way_is_completed_by_the_same_command(corpus, tmp_path):
    def stop(split: str, done: int, total: int) -> None:
        if split == "train" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite([corpus], tmp_path / "new", RESHARD, on_progress=stop)
    # A split is there whole or not at all.
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["dev"]
    assert rewrite([corpus], tmp_path / "new", RESHARD).kept == ("dev",)
    rewrite([corpus], tmp_path / "at-once", RESHARD)
    assert content_of(tmp_path / "new") == content_of(tmp_path / "at-once")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("place", ["", "train", "new", "../corpus/deep/er"])
def test_nothing_is_written_into_the_set_that_is_read(corpus, place):
    with pytest.raises(DataError, match="never touched"):
        rewrite([corpus], corpus / place, RESHARD)
    with pytest.raises(DataError, match="never touched"):
        rewrite([corpus / "train"], corpus.parent, RESHARD)


def test_merging_puts_the_splits_of_a_name_together(corpus, tmp_path):
    write_set(tmp_path / "other" / "train", some_speech(6, "o"), RULES)
    write_set(tmp_path / "other" / "test", some_speech(3, "x"), RULES)
    command = Command("merge", {}, 5.0, seed=1)
    report = rewrite([corpus, tmp_path / "other"], tmp_path / "both", command)
    assert {name: split.utterances for name, split in report.splits.items()} == {"train": 26, "dev": 5, "test": 3}
    expected = utterances_of(corpus / "train") | utterances_of(tmp_path / "other" / "train")
    assert utterances_of(tmp_path / "both" / "train") == expected
    # The order of the sets does not matter, but for the lineage.
    rewrite([tmp_path / "other", corpus], tmp_path / "swapped", command)
    assert list(read_index(tmp_path / "both" / "train").keys()) == list(
        read_index(tmp_path / "swapped" / "train").keys()
    )


def test_keys_that_clash_are_named_and_prefixed_on_request(corpus, tmp_path):
    write_set(tmp_path / "other" / "train", some_speech(3, "t"), RULES)
    sets = [corpus / "train", tmp_path / "other"]
    with pytest.raises(DataError, match=r"3 keys of split train .* such as t000, t001, t002; .*--prefixes"):
        rewrite(sets, tmp_path / "both", Command("merge", {}, 5.0, seed=1))
    assert not (tmp_path / "both").exists()
    rewrite(sets, tmp_path / "both", Command("merge", {}, 5.0, seed=1, prefixes=("a", "b")))
    keys = utterances_of(tmp_path / "both" / "train").keys()
    assert len(keys) == 23
    assert {"a-t000", "b-t000"} <= keys
    for prefixes in (("a",), ("a", "a"), ("a", "b/c"), ("a", "")):
        with pytest.raises(DataError):
            rewrite(sets, tmp_path / "wrong", Command("merge", {}, 5.0, seed=1, prefixes=prefixes))


@pytest.mark.parametrize(
    ("rules", "shape", "seen"),
    [
        ({"version": 1}, {}, "normalised under other rules"),
        (None, {}, "normalised under other rules"),
        (RULES, {"sample_rate_hz": 16000}, "8000 Hz"),
    ],
)
def test_sets_that_do_not_go_together_are_not_merged(corpus, tmp_path, rules, shape, seen):
    write_set(tmp_path / "train", some_speech(3, "o"), rules, **shape)
    with pytest.raises(DataError, match=seen):
        rewrite([corpus / "train", tmp_path / "train"], tmp_path / "both", Command("merge", {}, 5.0, seed=1))
    assert not (tmp_path / "both").exists()


def test_a_broken_utterance_ends_the_copy_with_its_key_and_leaves_nothing(tmp_path):
    split = write_set(tmp_path / "train", some_speech(8))
    index = read_index(split)
    victim = 3
    path = split / index.shard_name(victim)
    content = bytearray(path.read_bytes())
    content[int(index.offset[victim]) + int(index.size[victim]) // 2] ^= 0xFF
    path.write_bytes(content)
    key = list(index.keys())[victim]
    with pytest.raises(DataError, match=f"Utterance {key} at offset"):
        rewrite([split], tmp_path / "new", RESHARD)
    assert not (tmp_path / "new" / "train").exists()
    # What is not chosen is not read.
    (tmp_path / "bad.txt").write_text(f"{key}\n")
    choice = Filter(FilterConfig(without_keys=str(tmp_path / "bad.txt")))
    rewrite([split], tmp_path / "new", Command("filter", {}, 5.0, choose=choice.choose))
    assert len(read_index(tmp_path / "new" / "train")) == 7


def test_only_the_splits_that_are_named_are_made(corpus, tmp_path):
    assert rewrite([corpus], tmp_path / "new", RESHARD, only_splits=["dev"]).splits.keys() == {"dev"}
    with pytest.raises(DataError, match="No set has a split test"):
        rewrite([corpus], tmp_path / "none", RESHARD, only_splits=["test"])


def candidates(count: int) -> list[Candidate]:
    return [
        Candidate("train", f"k{number}", "abc" * (number % 5), f"s{number % 3}", "xx", 1.0 + number % 7)
        for number in range(count)
    ]


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 200), small=st.floats(0.01, 0.5), seed=st.integers(0, 5))
def test_a_smaller_sample_lies_in_a_larger_one(count, small, seed):
    """sample(p) within sample(q) for p < q, and each of its size, by utterances, hours and share alike"""
    rows = candidates(count)
    fewer = SampleConfig(share=small, seed=seed).choose(rows)
    more = SampleConfig(share=2 * small, seed=seed).choose(rows)
    assert sum(fewer) == max(1, round(small * count))
    assert all(second for first, second in zip(fewer, more, strict=True) if first)
    assert sum(SampleConfig(utterances=10, seed=seed).choose(rows)) == min(10, count)
    total_s = sum(row.seconds for row in rows)
    hours = SampleConfig(hours=small * total_s / 3600, seed=seed).choose(rows)
    seconds = sum(row.seconds for row, chosen in zip(rows, hours, strict=True) if chosen)
    assert seconds <= small * total_s * (1 + 1e-9)
    # The order of the set does not matter.
    reverse = SampleConfig(share=small, seed=seed).choose(rows[::-1])
    assert reverse[::-1] == fewer


@pytest.mark.parametrize("values", [{}, {"hours": 1, "share": 0.5}, {"share": 1.5}, {"utterances": 0}, {"hours": 0}])
def test_a_sample_of_no_size_is_refused(values):
    with pytest.raises(ValueError, match=r"hours|share|utterances"):
        SampleConfig(**values)


ROWS = [
    Candidate("train", "short", "ja", "anna", "de", 0.5),
    Candidate("train", "long", "eine lange geschichte", "bert", "de", 9.0),
    Candidate("train", "fast", "viele worte in kurzer zeit gesagt", "anna", "de", 1.0),
    Candidate("train", "other", "yes 42", "carl", "en", 2.0),
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"min_seconds": 1}, {"long", "fast", "other"}),
        ({"max_seconds": 1}, {"short", "fast"}),
        ({"min_seconds": 1, "max_seconds": 2}, {"fast", "other"}),
        ({"max_rate": 20}, {"short", "long", "other"}),
        ({"min_rate": 3}, {"short", "fast", "other"}),
        ({"languages": ["en"]}, {"other"}),
        ({"speakers": ["anna", "carl"]}, {"short", "fast", "other"}),
        ({"without_speakers": ["anna"]}, {"long", "other"}),
        ({"text": r"\d"}, {"other"}),
        ({"without_text": r"\d|lange"}, {"short", "fast"}),
        ({"languages": ["de"], "max_seconds": 1, "without_text": "worte"}, {"short"}),
    ],
)
def test_an_utterance_is_taken_where_all_conditions_hold(values, expected):
    chosen = Filter(FilterConfig(**values)).choose(ROWS)
    assert {row.key for row, taken in zip(ROWS, chosen, strict=True) if taken} == expected


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ({}, "no condition"),
        ({"text": "("}, "no regular expression"),
        ({"without_text": "*"}, "no regular expression"),
        ({"kinds": ["silence"]}, "no report"),
        ({"kinds": ["noise"], "keys": "f"}, "noise"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(values, seen):
    with pytest.raises(ValueError, match=seen):
        FilterConfig(**values)


def test_keys_come_from_a_list_or_from_a_report_of_verify(tmp_path):
    listed = tmp_path / "keys.txt"
    listed.write_text("a\n\n dev/b \n")
    assert read_keys(listed) == {"a", "dev/b"}
    report = tmp_path / "report.json"
    findings = [
        {"kind": "silence", "split": "train", "items": [{"keys": ["a"]}, {"keys": ["b"]}]},
        {"kind": "leaked-text", "split": "train+dev", "items": [{"keys": ["train/c", "dev/d"]}]},
    ]
    report.write_text(json.dumps({"findings": findings}))
    assert read_keys(report) == {"train/a", "train/b", "train/c", "dev/d"}
    assert read_keys(report, ["silence"]) == {"train/a", "train/b"}
    # Of another split the utterance of the same name stays.
    chosen = Filter(FilterConfig(without_keys=str(report))).choose([Candidate("dev", "a", "t", "", "", 1.0)])
    assert chosen == [True]
    for content in ("{", '{"findings": 3}', '{"findings": [{}]}'):
        report.write_text(content)
        with pytest.raises(DataError, match="cannot be read as a list of keys"):
            read_keys(report)
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")


def test_nothing_chosen_is_said(corpus, tmp_path):
    choice = Filter(FilterConfig(languages=("zz",)))
    with pytest.raises(DataError, match="no utterance of dev, train is chosen"):
        rewrite([corpus], tmp_path / "new", Command("filter", {}, 5.0, choose=choice.choose))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_an_utterance_is_written_as_it_is(corpus, tmp_path, suffix):
    import soundfile

    key = next(iter(read_index(corpus / "train").keys()))
    waveform, text, _, _ = utterances_of(corpus / "train")[key]
    audio, text_file = play(corpus, key, tmp_path / f"heard{suffix}")
    samples, rate_hz = soundfile.read(audio, dtype="float32")
    assert samples.tobytes() == waveform
    assert rate_hz == 8000
    assert text_file.read_text().rstrip("\n") == text
    with pytest.raises(DataError, match="already there"):
        play(corpus, key, tmp_path / f"heard{suffix}")


def test_which_utterance_is_played_is_never_guessed(tmp_path):
    write_set(tmp_path / "train", [Said("same", waveform=speech(1.0, 1)), Said("own", waveform=speech(1.0, 2))])
    write_set(tmp_path / "dev", [Said("same", waveform=speech(2.0, 3))])
    with pytest.raises(DataError, match="dev/same, train/same"):
        play(tmp_path, "same", tmp_path / "a.wav")
    play(tmp_path, "dev/same", tmp_path / "a.wav")
    assert (tmp_path / "a.wav").stat().st_size > 2 * 2 * 8000
    with pytest.raises(DataError, match="No utterance"):
        play(tmp_path, "dev/own", tmp_path / "b.wav")
    with pytest.raises(DataError, match=r"neither a \.wav nor a \.flac"):
        play(tmp_path, "own", tmp_path / "b.mp3")
    assert not np.any([path.name.startswith("b.") for path in tmp_path.iterdir()])
