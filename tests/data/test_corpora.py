"""The corpora: which utterances they give, what never mixes, and what `prepare` writes and completes."""

import hashlib
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data.audio import RejectedRow, Utterance, audio_seconds, read_audio
from data.corpora import CORPORA, CorpusConfig, aelita, changed_recordings, folder, fsdd, prepare
from data.corpora.aelita import AelitaConfig
from data.corpora.folder import FolderConfig, normalize_text
from data.corpora.fsdd import FsddConfig
from data.corpora.hashed_splits import split_by_hash
from data.corpora.rejections import count_reasons, describe_rejections
from data.errors import DataError
from data.shards.writer import read_index
from data.text.transcripts import RULES_VERSION

RATE_HZ = 8000


def by_split(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    splits: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        splits.setdefault(utterance.split, []).append(utterance)
    return splits


def write_noise(path: Path, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, round(seconds * RATE_HZ))
    soundfile.write(path, noise.astype(np.float32), RATE_HZ)


def test_every_corpus_is_told_apart_by_its_name() -> None:
    needed = {"aelita": {}, "folder": {"manifest": "m.csv"}}
    for name, corpus in CORPORA.items():
        parsed = TypeAdapter(CorpusConfig).validate_python({"name": name, **needed.get(name, {"root": "."})})
        assert type(parsed) is corpus.config


# --- aelita ------------------------------------------------------------------------------------------


def aelita_splits(seed: int = 1, **fields) -> dict[str, list[Utterance]]:
    return by_split(aelita.select(AelitaConfig(**fields), seed).utterances)


@pytest.fixture(scope="module")
def sentences() -> dict[str, Utterance]:
    whole = aelita.select(AelitaConfig(cuts=("sentences",)), 1).utterances
    return {utterance.clips[0].path.name: utterance for utterance in whole if utterance.clips[0].seconds is None}


def test_evaluation_is_on_whole_sentences_whatever_the_cuts(sentences: dict[str, Utterance]) -> None:
    for cuts in (("phrases",), ("spans",), ("phrases", "spans", "sentences")):
        splits = aelita_splits(cuts=cuts)
        assert (len(splits["dev"]), len(splits["test"])) == (40, 81)
        for utterance in splits["dev"] + splits["test"]:
            assert utterance == sentences[utterance.clips[0].path.name]


def test_cuts_are_united_without_counting_a_piece_twice() -> None:
    pieces = {}
    for cuts in (("phrases",), ("spans",), ("phrases", "spans"), ("sentences",)):
        train = aelita_splits(cuts=cuts)["train"]
        pieces[cuts] = {utterance.key for utterance in train}
        assert len(pieces[cuts]) == len(train)
        spoken = [(utterance.clips, utterance.text) for utterance in train]
        assert len(set(spoken)) == len(spoken)
    assert pieces[("phrases", "spans")] == pieces[("phrases",)] | pieces[("spans",)]
    assert len(pieces[("sentences",)]) == 499


def test_pieces_of_a_sentence_keep_its_split_and_stay_inside_its_file(
    sentences: dict[str, Utterance],
) -> None:
    cut = [utterance for utterance in aelita_splits()["train"] if utterance.clips[0].seconds is not None]
    assert cut
    lengths_s = {utterance.clips[0].path: 0.0 for utterance in cut}
    lengths_s = {path: audio_seconds(path) for path in lengths_s}
    for utterance in cut:
        clip = utterance.clips[0]
        assert sentences[clip.path.name].split == "train"
        assert clip.start_s >= 0
        assert clip.seconds > 0.4
        assert clip.start_s + clip.seconds <= lengths_s[clip.path] + 1e-3


def test_spans_cover_each_sentence_once_in_order(sentences: dict[str, Utterance]) -> None:
    spans: dict[str, list[Utterance]] = {}
    for utterance in aelita_splits(cuts=("spans",))["train"]:
        spans.setdefault(utterance.clips[0].path.name, []).append(utterance)
    for name, pieces in spans.items():
        pieces.sort(key=lambda piece: piece.clips[0].start_s)
        text = " ".join(piece.text for piece in pieces)
        assert text == sentences[name].text.replace("'", " ")
        for left, right in itertools.pairwise(pieces):
            assert left.clips[0].start_s + left.clips[0].seconds <= right.clips[0].start_s + 1e-3


def test_whole_sentences_do_not_come_again_as_spans(sentences: dict[str, Utterance]) -> None:
    train = aelita_splits(cuts=("sentences", "phrases", "spans"), span_s=20.0)["train"]
    assert sum(utterance.clips[0].seconds is None for utterance in train) == 499
    for utterance in train:
        clip = utterance.clips[0]
        assert clip.seconds is None or utterance.text != sentences[clip.path.name].text


# Two phrases and their margins are 5.0 s: just below it the margins decide.
@given(span_s=st.one_of(st.floats(2, 20), st.floats(4.8, 5.0)), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=500)
def test_a_span_of_several_phrases_is_no_longer_than_asked(span_s: float, seed: int) -> None:
    phrases = [{"start_s": 2.5 * number, "end_s": 2.5 * number + 2.3, "text": "x"} for number in range(9)]
    for first, last in aelita._spans(phrases, span_s, seed):
        length_s = phrases[last]["end_s"] - phrases[first]["start_s"] + 2 * aelita.MARGIN_S
        assert first == last or length_s <= span_s + 1e-9


def test_the_seed_decides_the_spans() -> None:
    first, again, other = (aelita_splits(seed, cuts=("spans",))["train"] for seed in (1, 1, 2))
    assert first == again
    assert {utterance.key for utterance in first} != {utterance.key for utterance in other}


def test_a_piece_is_read_from_the_embedded_audio() -> None:
    piece = next(utterance for utterance in aelita_splits()["train"] if utterance.clips[0].seconds is not None)
    waveform = read_audio(piece, 16000)
    assert len(waveform) == pytest.approx(piece.clips[0].seconds * 16000, abs=2)
    assert np.abs(waveform).max() > 0.05


# --- fsdd --------------------------------------------------------------------------------------------

SPEAKERS = ("ada", "bob", "cyd")
FEW = {"train_strings": 30, "dev_strings": 6, "test_strings": 9}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fsdd")
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in (0, 4, 5, 9, 10, 49):
                write_noise(root / "recordings" / f"{digit}_{speaker}_{take}.wav", 0.05)
    return root


def test_strings_join_takes_of_one_speaker_and_say_their_digits(recordings: Path) -> None:
    utterances, rejected = fsdd.select(FsddConfig(root=recordings, **FEW), 1)
    assert rejected == []
    assert {split: len(strings) for split, strings in by_split(utterances).items()} == {
        "train": 30,
        "dev": 6,
        "test": 9,
    }
    for utterance in utterances:
        names = [clip.path.stem.split("_") for clip in utterance.clips]
        assert 3 <= len(names) <= 7
        assert {speaker for _, speaker, _ in names} == {utterance.speaker}
        assert utterance.text == " ".join(fsdd.WORDS[int(digit)] for digit, _, _ in names)
        assert all(0.05 <= gap_s <= 0.25 for gap_s in utterance.gaps_s)


def test_no_take_stands_in_two_splits(recordings: Path) -> None:
    splits = by_split(fsdd.select(FsddConfig(root=recordings, **FEW), 1).utterances)
    takes = {}
    for split, strings in splits.items():
        clips = itertools.chain.from_iterable(string.clips for string in strings)
        takes[split] = {int(clip.path.stem.split("_")[2]) for clip in clips}
    assert takes == {"test": {0, 4}, "dev": {5, 9}, "train": {10, 49}}


def test_a_held_out_speaker_is_heard_in_test_unseen_only(recordings: Path) -> None:
    config = FsddConfig(root=recordings, held_out_speakers=("bob",), **FEW)
    splits = by_split(fsdd.select(config, 1).utterances)
    assert {split: {string.speaker for string in strings} for split, strings in splits.items()} == {
        "train": {"ada", "cyd"},
        "dev": {"ada", "cyd"},
        "test": {"ada", "cyd"},
        "test_unseen": {"bob"},
    }
    assert all(int(c.path.stem[-1]) in (0, 4) for u in splits["test_unseen"] for c in u.clips)


def test_the_recordings_folder_itself_serves_as_root(recordings: Path) -> None:
    inner = fsdd.select(FsddConfig(root=recordings / "recordings", **FEW), 1)
    assert inner == fsdd.select(FsddConfig(root=recordings, **FEW), 1)


def test_another_seed_gives_other_strings(recordings: Path) -> None:
    config = FsddConfig(root=recordings, **FEW)
    texts = [[u.text for u in fsdd.select(config, seed).utterances] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_recording_with_another_name_is_reported(tmp_path: Path) -> None:
    for take in (0, 5, 10):
        write_noise(tmp_path / f"3_ada_{take}.wav")
    write_noise(tmp_path / "notes.wav")
    rejected = fsdd.select(FsddConfig(root=tmp_path, **FEW), 1).rejected
    assert len(rejected) == 1
    assert "notes.wav" in rejected[0].reason


def test_a_missing_dataset_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere; clone the dataset"):
        fsdd.select(FsddConfig(root=tmp_path / "nowhere"), 1)


@pytest.mark.parametrize("held_out", [("eve",), SPEAKERS])
def test_speakers_that_cannot_be_held_out_are_refused(recordings: Path, held_out: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="ada, bob, cyd"):
        fsdd.select(FsddConfig(root=recordings, held_out_speakers=held_out), 1)


@pytest.mark.parametrize("fields", [{"min_digits": 8}, {"min_gap_s": 0.5}])
def test_a_range_in_the_wrong_order_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError, match="swap them"):
        FsddConfig(root=Path("."), **fields)


def test_the_packed_form_of_the_real_dataset_is_read() -> None:
    corpora = os.environ.get("CHORUS_TEST_CORPORA")
    if corpora is None:
        pytest.skip("CHORUS_TEST_CORPORA names no folder with fsdd/")
    config = FsddConfig(root=Path(corpora) / "fsdd", held_out_speakers=("theo",), **FEW)
    splits = by_split(fsdd.select(config, 1).utterances)
    assert {u.speaker for u in splits["test_unseen"]} == {"theo"}
    assert {u.speaker for u in splits["train"]} == {"george", "jackson", "lucas", "nicolas", "yweweler"}
    for utterance in splits["dev"]:
        waveform = read_audio(utterance, 16000)
        wanted_s = sum(clip.seconds for clip in utterance.clips) + sum(utterance.gaps_s)
        assert len(waveform) == pytest.approx(wanted_s * 16000, abs=10)


# --- folder ------------------------------------------------------------------------------------------


def write_manifest(root: Path, rows: list[dict]) -> Path:
    for row in rows:
        if row["audio"].startswith("good"):
            write_noise(root / row["audio"])
    path = root / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Hello,  World!", "hello world"),
        ("don’t — 'quote'", "don't quote"),
        ("cafe\u0301", "café"),
        ("well-known, 3 €", "well known 3"),
        ("हिन्दी।", "हिन्दी"),
        ("...", ""),
        *(
            (f"hel{invisible}lo {invisible}world", "hello world")
            for invisible in "\u200b\ufeff\u200e\u00ad\u2060\ufe0f"
        ),
        ("a\x00b", "a b"),
        ("پیدا\u200cکردن", "پیدا\u200cکردن"),
        ("a\u200d \u200cb", "a b"),
        ("<unk> you know [noise] {um} (laughter) [2019] (he said)", "you know 2019 he said"),
        ("hello <COMMA> world", "hello world"),
        ("[noise]", ""),
        ("İzmir", "izmir"),
        ("nice \u2665\ufe0f", "nice"),
    ],
)
def test_normalisation_removes_punctuation_and_nothing_of_words(text: str, normalised: str) -> None:
    assert normalize_text(text, lower=True, punctuation=False) == normalised


def test_turkish_has_two_letters_i() -> None:
    assert normalize_text("ISPARTA İZMİR", lower=True, punctuation=False, language="tr-TR") == "ısparta izmir"


@given(st.text() | st.text("aI\u0307\u200c\u200d<>[](){}-\ufe0f\u0301 "))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalize_text(text, lower=True, punctuation=False)
    assert normalize_text(once, lower=True, punctuation=False) == once


def test_texts_can_be_left_as_written(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [{"audio": "good.wav", "text": "Hello,  World!"}])
    config = FolderConfig(manifest=manifest, normalize="none", punctuation="keep")
    assert folder.select(config, 1).utterances[0].text == "Hello, World!"


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "A!", "b", "b b", "B, b", "c"]), st.sampled_from(["", "", "dev"])),
        min_size=1,
        max_size=20,
    ),
    st.floats(0, 0.5),
    st.floats(0, 0.49),
)
def test_one_text_never_stands_in_two_splits(
    rows: list[tuple[str, str]], dev_fraction: float, test_fraction: float
) -> None:
    config = FolderConfig(manifest=Path("m.csv"), dev_fraction=dev_fraction, test_fraction=test_fraction)
    clip = (aelita.Clip(Path("a.wav")),)
    utterances = [Utterance(f"u{i}", clip, text, split) for i, (text, split) in enumerate(rows)]
    placed = folder._with_splits(utterances, config)
    for utterance, given_row in zip(placed, utterances, strict=True):
        assert utterance.split in ((given_row.split,) if given_row.split else ("train", "dev", "test"))
    # "dev" is the only split named by a row, so no two rows can disagree by themselves.
    wording = {}
    for utterance in placed:
        text = normalize_text(utterance.text, lower=True, punctuation=False)
        assert wording.setdefault(text, utterance.split) == utterance.split


def test_splits_by_hash_come_near_their_fractions() -> None:
    splits = [split_by_hash(f"sentence {number}", 0.1, 0.2) for number in range(5000)]
    # Four standard deviations of a binomial count.
    assert splits.count("test") == pytest.approx(1000, abs=113)
    assert splits.count("dev") == pytest.approx(500, abs=85)


def test_a_manifest_without_a_usable_row_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [{"audio": "gone.wav", "text": "t"}, {"audio": "good.wav", "text": "?"}])
    with pytest.raises(DataError, match=r"None of the 2 rows .*line 1: there is no audio file"):
        folder.select(FolderConfig(manifest=manifest), 1)


def test_rows_without_a_text_are_kept_for_training_where_they_are_wanted(tmp_path: Path) -> None:
    untranscribed = [{"audio": f"good{number}.wav"} for number in range(30)]
    rows = [{"audio": "good.wav", "text": "t", "split": "dev"}, {"audio": "good-dev.wav", "split": "dev"}]
    manifest = write_manifest(tmp_path, [*rows, {"audio": "good-mark.wav", "text": "?"}, *untranscribed])
    selection = folder.select(FolderConfig(manifest=manifest, untranscribed="keep"), 1)
    assert Counter((utterance.split, utterance.text) for utterance in selection.utterances) == {
        ("dev", "t"): 1,
        ("dev", ""): 1,
        ("train", ""): 30,
    }
    # A text of which nothing is left is not one that was never written.
    assert [row.line for row in selection.rejected] == [3]
    assert len(folder.select(FolderConfig(manifest=manifest), 1).utterances) == 1
    report = prepare(FolderConfig(manifest=manifest, untranscribed="keep"), tmp_path / "out", seed=1)
    assert report.splits["train"].utterances == 30
    assert not read_index(tmp_path / "out" / "train").text_length.any()


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValidationError, match="below 1"):
        FolderConfig(manifest=Path("m.csv"), dev_fraction=0.5, test_fraction=0.5)


# --- prepare -----------------------------------------------------------------------------------------


@pytest.fixture
def mixed_manifest(tmp_path: Path) -> Path:
    rows = []
    for split in ("train", "test"):
        for number in range(6):
            audio = f"good{split}{number}.wav"
            rows.append({"id": f"{split}{number}", "audio": audio, "text": f"text {number}", "split": split})
    rows.insert(2, {"audio": "gone.wav", "text": "t"})
    rows.append({"audio": "good_silent.wav", "text": "?!"})
    rows.append({"audio": "broken.flac", "text": "t", "split": "train"})
    root = tmp_path / "corpus"
    manifest = write_manifest(root, rows)
    soundfile.write(root / "broken.flac", np.random.default_rng(0).normal(0, 0.1, 9000), RATE_HZ)
    whole = (root / "broken.flac").read_bytes()
    (root / "broken.flac").write_bytes(whole[: len(whole) // 2])
    return manifest


def prepare_folder(manifest: Path, out_dir: Path, **changes):
    config = FolderConfig(manifest=manifest, shard_seconds=0.5)
    return prepare(config, out_dir, **({"seed": 1, "sample_rate_hz": RATE_HZ, "workers": 2} | changes))


def test_prepare_writes_every_split_and_accounts_for_every_row(mixed_manifest: Path, tmp_path: Path) -> None:
    report = prepare_folder(mixed_manifest, tmp_path / "out")
    assert {name: split.utterances for name, split in report.splits.items()} == {"train": 6, "test": 6}
    assert [row.line for row in report.rejected] == [3, 14, 15]
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [3, 14, 15]
    assert all(json.loads(line)["reason"] for line in lines)
    record = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert record["format"] == 1
    assert record["corpus"]["manifest"] == str(mixed_manifest)
    assert record["splits"]["train"]["hours"] == pytest.approx(6 * 0.2 / 3600)
    assert record["fingerprint"] == report.fingerprint
    assert len(read_index(tmp_path / "out" / "test")) == 6


def test_prepare_again_makes_nothing_again_and_says_the_same(mixed_manifest: Path, tmp_path: Path) -> None:
    first = prepare_folder(mixed_manifest, tmp_path / "out")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}
    second = prepare_folder(mixed_manifest, tmp_path / "out")
    assert (first.kept, second.kept) == ((), ("test", "train"))
    assert (second.splits, second.rejected, second.fingerprint) == (
        first.splits,
        first.rejected,
        first.fingerprint,
    )
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_an_interrupted_preparation_keeps_its_finished_splits(mixed_manifest: Path, tmp_path: Path) -> None:
    def interrupt(split: str, done: int, total: int) -> None:
        if split == "test":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_folder(mixed_manifest, tmp_path / "out", on_progress=interrupt)
    report = prepare_folder(mixed_manifest, tmp_path / "out")
    assert report.kept == ("train",)
    whole = prepare_folder(mixed_manifest, tmp_path / "whole")
    assert report.fingerprint == whole.fingerprint


@pytest.mark.parametrize("changes", [{"seed": 2}, {"sample_rate_hz": 16000}])
def test_shards_of_another_configuration_are_refused_or_replaced(
    mixed_manifest: Path, tmp_path: Path, changes: dict
) -> None:
    first = prepare_folder(mixed_manifest, tmp_path / "out")
    with pytest.raises(DataError, match="made from something else"):
        prepare_folder(mixed_manifest, tmp_path / "out", **changes)
    replaced = prepare_folder(mixed_manifest, tmp_path / "out", replace=True, **changes)
    assert replaced.kept == ()
    assert replaced.fingerprint != first.fingerprint


def test_a_corrected_transcript_is_noticed(mixed_manifest: Path, tmp_path: Path) -> None:
    prepare_folder(mixed_manifest, tmp_path / "out")
    mixed_manifest.write_text(mixed_manifest.read_text().replace('"text 5", "split": "test"', '"new", "split": "test"'))
    report = prepare_folder(mixed_manifest, tmp_path / "out", replace=True)
    assert report.kept == ("train",)
    assert "new" in read_index(tmp_path / "out" / "test").transcripts()


def test_a_torn_split_is_made_again_when_replaced(mixed_manifest: Path, tmp_path: Path) -> None:
    first = prepare_folder(mixed_manifest, tmp_path / "out")
    (tmp_path / "out" / "train" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="not whole"):
        prepare_folder(mixed_manifest, tmp_path / "out")
    assert prepare_folder(mixed_manifest, tmp_path / "out", replace=True).fingerprint == first.fingerprint


def test_splits_of_known_other_names_are_read_as_train_dev_and_test_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["Train", "TRAINING", "train", "valid", "Validation", "DEV", "val", "Test", "eval", "test_clean", "Test_B"]
    rows = [
        {"audio": f"good-{number}.wav", "text": f"sentence {'a' * number}", "split": name}
        for number, name in enumerate(names)
    ]
    selection = folder.select(FolderConfig(manifest=write_manifest(tmp_path, rows)), 1)
    assert [utterance.split for utterance in selection.utterances] == [
        *("train", "train", "train", "dev", "dev", "dev", "dev", "test", "eval", "test_clean", "Test_B")
    ]
    assert selection.rejected == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "DEV is read as dev, TRAINING is read as train, Test is read as test" in lines[0]
    assert "valid is read as dev" in lines[0]
    assert "eval is" not in lines[0]


def test_splits_of_the_usual_names_need_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"audio": f"good-{split}.wav", "text": f"sentence of {split}", "split": split} for split in ("train", "dev", "")
    ]
    folder.select(FolderConfig(manifest=write_manifest(tmp_path, rows)), 1)
    assert caplog.records == []


# --- what is repaired is taken, what changed is noticed -----------------------------------------------


def cut_in_half(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


@pytest.fixture
def with_broken(tmp_path: Path) -> Path:
    """A manifest of 6 rows: one recording breaks off, one is missing, one is no audio."""
    rows = [{"id": f"r{number}", "audio": f"good{number}.wav", "text": f"text {number}"} for number in range(6)]
    manifest = write_manifest(tmp_path / "corpus", [row | {"split": "train"} for row in rows])
    folder = manifest.parent
    soundfile.write(folder / "good1.flac", np.random.default_rng(1).normal(0, 0.1, 9000), RATE_HZ)
    manifest.write_text(manifest.read_text().replace("good1.wav", "good1.flac"))
    cut_in_half(folder / "good1.flac")
    (folder / "good2.wav").rename(folder / "elsewhere.wav")
    (folder / "good3.wav").write_text("no audio")
    return manifest


def keys_of(out_dir: Path, split: str = "train") -> set[str]:
    return set(read_index(out_dir / split).keys())


@pytest.mark.parametrize("replace", [False, True])
def test_a_broken_recording_that_was_replaced_is_taken_at_the_next_prepare(
    with_broken: Path, tmp_path: Path, replace: bool
) -> None:
    out, folder = tmp_path / "out", with_broken.parent
    assert len(prepare_folder(with_broken, out).rejected) == 3
    assert prepare_folder(with_broken, out, replace=replace).kept == ("train",)
    assert keys_of(out) == {"r0", "r4", "r5"}
    repairs = [
        ("r1", lambda: soundfile.write(folder / "good1.flac", np.ones(9000) * 0.1 * np.arange(9000) / 9000, RATE_HZ)),
        ("r2", lambda: (folder / "elsewhere.wav").rename(folder / "good2.wav")),
        ("r3", lambda: write_noise(folder / "good3.wav")),
    ]
    for number, (key, repair) in enumerate(repairs, 1):
        repair()
        assert len(changed_recordings(out)) == 1
        report = prepare_folder(with_broken, out, replace=replace)
        assert (report.kept, len(report.rejected)) == ((), 3 - number)
        assert key in keys_of(out)
        assert changed_recordings(out) == []
        assert prepare_folder(with_broken, out).kept == ("train",)
    assert prepare_folder(with_broken, tmp_path / "anew").fingerprint == report.fingerprint


def test_shards_of_earlier_versions_take_a_repaired_recording_too(with_broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(with_broken, out)
    for path in (out / "sources.jsonl", out / "train" / "sources.jsonl"):
        path.unlink()
    assert changed_recordings(out) == []
    assert prepare_folder(with_broken, out).kept == ("train",)
    soundfile.write(with_broken.parent / "good1.flac", np.random.default_rng(1).normal(0, 0.1, 9000), RATE_HZ)
    prepare_folder(with_broken, out)
    assert "r1" in keys_of(out)


def with_other_noise(path: Path) -> None:
    """Other audio in a file of the same length."""
    size = path.stat().st_size
    samples, rate_hz = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate_hz)
    assert path.stat().st_size == size


def test_changed_audio_of_equal_length_is_noticed_by_its_content(mixed_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare_folder(mixed_manifest, out)
    changed = mixed_manifest.parent / "goodtrain3.wav"
    with_other_noise(changed)
    assert changed_recordings(out) == [str(changed)]
    with pytest.raises(DataError, match=r"1 of its 6 recordings changed, the first is .*goodtrain3\.wav.*--replace"):
        prepare_folder(mixed_manifest, out)
    report = prepare_folder(mixed_manifest, out, replace=True)
    assert report.kept == ("test",)
    assert report.fingerprint != first.fingerprint
    assert changed_recordings(out) == []
    assert prepare_folder(mixed_manifest, out).kept == ("test", "train")


def test_recordings_that_were_copied_with_new_times_have_not_changed(mixed_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare_folder(mixed_manifest, out)
    for path in mixed_manifest.parent.glob("good*.wav"):
        os.utime(path, (1, 1))
    assert changed_recordings(out) == []
    before = (out / "train" / "sources.jsonl").read_text()
    assert prepare_folder(mixed_manifest, out).fingerprint == first.fingerprint
    # Their new times are recorded, so that they need not be hashed at every start.
    assert (out / "train" / "sources.jsonl").read_text() != before


def test_a_corpus_that_was_moved_has_not_changed_and_what_changes_there_is_noticed(
    mixed_manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = prepare_folder(mixed_manifest, out)
    moved = mixed_manifest.parent.rename(tmp_path / "moved") / mixed_manifest.name
    # Shards outlive the recordings that they were made of.
    assert changed_recordings(out) == []
    report = prepare_folder(moved, out)
    assert (report.kept, report.fingerprint) == (("test", "train"), first.fingerprint)
    with_other_noise(moved.parent / "goodtest0.wav")
    assert changed_recordings(out) == [str(moved.parent / "goodtest0.wav")]
    with pytest.raises(DataError, match="1 of its 6 recordings changed"):
        prepare_folder(moved, out)


def test_recordings_newer_than_shards_that_do_not_know_them_are_said_and_replaced_where_that_is_wanted(
    mixed_manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    prepare_folder(mixed_manifest, out)
    (out / "train" / "sources.jsonl").unlink()
    with_other_noise(mixed_manifest.parent / "goodtrain0.wav")
    os.utime(mixed_manifest.parent / "goodtrain0.wav", (2**32, 2**32))
    assert prepare_folder(mixed_manifest, out).kept == ("test", "train")
    assert "1 of these are newer than the shards" in caplog.text
    assert prepare_folder(mixed_manifest, out, replace=True).kept == ("test",)


def test_a_torn_record_of_the_recordings_says_what_to_do(mixed_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(mixed_manifest, out)
    for content in (b'{"path": "x"', b"[]\n", b'{"other": 1}\n', b"\xff\n", b"[" * 200_000):
        (out / "train" / "sources.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"sources\.jsonl cannot be read .*remove it"):
            prepare_folder(mixed_manifest, out)
        with pytest.raises(DataError, match=r"sources\.jsonl cannot be read"):
            changed_recordings(out)
    assert prepare_folder(mixed_manifest, out, replace=True).kept == ("test",)


def test_splits_record_the_rules_for_texts_and_the_recordings(mixed_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(mixed_manifest, out)
    rules = {"version": RULES_VERSION, "normalize": "lower", "punctuation": "remove", "language": ""}
    assert json.loads((out / "train" / "shards.json").read_text())["text_rules"] == rules
    assert json.loads((out / "corpus.json").read_text())["text_rules"] == rules
    lines = [json.loads(line) for line in (out / "test" / "sources.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"goodtest{number}.wav" for number in range(6)]
    for line in lines:
        content = Path(line["path"]).read_bytes()
        assert (line["num_bytes"], line["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_texts_that_nothing_is_done_to_record_no_rules() -> None:
    assert AelitaConfig().text_rules is None
    assert FsddConfig(root=Path(".")).text_rules is None


def test_the_language_of_the_corpus_is_that_of_rows_without_one(tmp_path: Path) -> None:
    rows = [{"audio": "good1.wav", "text": "DIŞ"}, {"audio": "good2.wav", "text": "DIŞ", "language": "en"}]
    selection = folder.select(FolderConfig(manifest=write_manifest(tmp_path, rows), language="tr"), 1)
    assert [(row.text, row.language) for row in selection.utterances] == [("dış", "tr"), ("diş", "en")]


# --- where the rows went ------------------------------------------------------------------------------


def test_every_row_is_accounted_for_with_the_first_reasons(with_broken: Path, tmp_path: Path) -> None:
    unspoken = [{"audio": "good0.wav", "id": name, "text": text} for name, text in (("a", "?"), ("b", "[noise]"))]
    lines = [with_broken.read_text(), "{}\n", *(json.dumps(row) + "\n" for row in unspoken), "[]\n\n"]
    with_broken.write_text("".join(lines))
    report = prepare_folder(with_broken, tmp_path / "out")
    assert (report.rows, report.used, len(report.rejected)) == (10, 3, 7)
    account = report.account()
    assert account.startswith("10 rows in: 3 used, 7 rejected: 2 no words in the text (first: line 8: nothing is left")
    for part in ("1 no such file (first: line 3: there is no audio file", "1 not JSON (first: line 10: a JSON list"):
        assert part in account
    assert "\n" not in account
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["rows"] == 10


def test_a_manifest_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("audio,text\n")
    with pytest.raises(DataError, match=r"m\.csv has no rows\. Every row names a recording"):
        folder.select(FolderConfig(manifest=tmp_path / "m.csv"), 1)


def test_reasons_are_counted_by_kind_whatever_is_quoted_in_them() -> None:
    reasons = [
        "there is no audio file /a/channel not JSON.wav",
        "there is no audio file /b/he said 'twice, in different case' and left",
        "train/wav.scp: there is no audio file x.wav",
        "Utterance k cannot be read: /a/b c.flac breaks off: 5 of 9 samples could be decoded.",
        "/a/b.m4a is MPEG-4 (m4a, mp4, mov, 3gp), which is not read here; convert it, for instance with ffmpeg",
        "column t0 seems to tell which part of the recording is meant, and is not read; call it start_s or channel",
        "a reason of tomorrow",
    ]
    counts = count_reasons(RejectedRow(line, reason) for line, reason in enumerate(reasons, 1))
    assert [(reason.kind, reason.count, reason.first.line) for reason in counts] == [
        ("no such file", 3, 1),
        ("audio that breaks off", 1, 4),
        ("formats that are not read", 1, 5),
        ("columns that name a part and are not read", 1, 6),
        ("other reasons", 1, 7),
    ]


def test_many_kinds_of_reasons_and_long_ones_stay_one_line_that_can_be_read() -> None:
    reasons = [
        "its text is empty",
        "it names no audio file",
        "not JSON (x)",
        "it is not UTF-8",
        "a JSON list, expected",
    ]
    reasons += ["a is digital silence", "b is an empty file", "key x is already that of line 3", "y\n" * 5000]
    line = describe_rejections([RejectedRow(1, reason) for reason in reasons])
    assert line.startswith("9 rejected: 2 not JSON (first: line 1: not JSON (x))")
    assert line.endswith("2 of 2 other kinds")
    assert "\n" not in line
    assert len(line) < 1500
    assert describe_rejections([]) == "0 rejected"


def test_a_split_of_which_nothing_can_be_decoded_does_not_keep_the_others_from_being_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"audio": f"good{number}.wav", "text": f"text {number}", "split": "train"} for number in range(3)]
    manifest = write_manifest(tmp_path, [*rows, {"audio": "good-dev.wav", "text": "silence", "split": "dev"}])
    soundfile.write(tmp_path / "good-dev.wav", np.zeros(4000), RATE_HZ)
    out = tmp_path / "out"
    report = prepare(FolderConfig(manifest=manifest), out, seed=1)
    assert (list(report.splits), report.rows, report.used) == (["train"], 4, 3)
    assert "digital silence" in report.rejected[0].reason
    assert "There will be no split dev" in caplog.text
    write_noise(tmp_path / "good-dev.wav")
    assert changed_recordings(out) == [str(tmp_path / "good-dev.wav")]
    assert set(prepare(FolderConfig(manifest=manifest), out, seed=1).splits) == {"train", "dev"}
    manifest.write_text(manifest.read_text().splitlines()[-1] + "\n")
    soundfile.write(tmp_path / "good-dev.wav", np.zeros(4000), RATE_HZ)
    with pytest.raises(DataError, match="None of 1 utterances of dev could be written"):
        prepare(FolderConfig(manifest=manifest), tmp_path / "other", seed=1)


def test_a_broken_row_of_a_packed_dataset_does_not_hide_the_others(tmp_path: Path) -> None:
    takes = []
    for split, start in (("train", 0.0), ("dev", 0.1), ("test", 0.2)):
        takes.append({"split": split, "speaker": "fsdd_ada", "text": "one", "file": "ada.wav", "start": start})
    lines = [json.dumps(take | {"seconds": 0.1}) for take in takes]
    lines += ["{", "[]", "[" * 200_000, json.dumps(takes[0] | {"seconds": 10**400}), json.dumps({"file": 5}), ""]
    (tmp_path / "index.jsonl").write_bytes("\n".join(lines).encode() + b'{"file": "\xff"}\n')
    write_noise(tmp_path / "ada.wav", 1.0)
    selection = fsdd.select(FsddConfig(root=tmp_path, **FEW), 1)
    assert [row.line for row in selection.rejected] == [4, 5, 6, 7, 8, 9]
    assert {utterance.split for utterance in selection.utterances} == {"train", "dev", "test"}
