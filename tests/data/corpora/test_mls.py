"""Multilingual LibriSpeech as it is published: Opus or FLAC, and small training sets within the large."""

import pytest
from lookalikes import of_split, texts, write_noise, write_text

from data.corpora import mls, prepare
from data.corpora.mls import MlsConfig
from data.errors import DataError


def write_corpus(root, suffix: str, **formats: str):
    for split in ("train", "dev", "test"):
        names = [f"1595_1457_00000{number}" for number in range(3)]
        for name in names:
            write_noise(root / split / "audio" / "1595" / "1457" / f"{name}{suffix}", 0.3, **formats)
        write_text(root / split / "transcripts.txt", *(f"{name}\tla conferenza è l'ora {name}" for name in names))
        write_text(root / split / "segments.txt", *(f"{name}\thttp://example/book.mp3\t0.0\t1.1" for name in names))
    limited = root / "train" / "limited_supervision"
    write_text(limited / "9hr" / "handles.txt", "1595_1457_000000")
    write_text(limited / "1hr" / "0" / "handles.txt", "1595_1457_000001")
    write_text(root / "metainfo.txt", " SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID")
    return root


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "mls_italian_opus", ".opus", format="OGG", subtype="OPUS")


def test_splits_texts_speakers_and_language(corpus, tmp_path):
    report = prepare(MlsConfig(root=corpus), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 3, "dev": 3, "test": 3}
    selection = mls.select(MlsConfig(root=corpus), 1)
    assert texts(selection, "dev")["1595_1457_000001"].startswith("la conferenza è l'ora")
    assert {(row.speaker, row.language) for row in of_split(selection, "dev")} == {("1595", "it")}


def test_flac_is_read_as_opus_is(tmp_path):
    root = write_corpus(tmp_path / "mls_polish", ".flac")
    selection = mls.select(MlsConfig(root=root), 1)
    assert {(row.clips[0].path.suffix, row.language) for row in selection.utterances} == {(".flac", "pl")}


@pytest.mark.parametrize(("train", "numbers"), [("1h", {1}), ("9h", {0}), ("10h", {0, 1}), ("all", {0, 1, 2})])
def test_small_training_sets_are_those_of_their_lists(corpus, train, numbers):
    selection = mls.select(MlsConfig(root=corpus, train=train), 1)
    assert texts(selection, "train").keys() == {f"1595_1457_00000{number}" for number in numbers}
    assert len(of_split(selection, "dev")) == 3
    assert selection.rejected == []


def test_what_is_listed_and_what_is_there_may_differ(corpus, tmp_path):
    write_noise(corpus / "dev" / "audio" / "1595" / "1457" / "1595_1457_000009.opus", format="OGG", subtype="OPUS")
    (corpus / "dev" / "audio" / "1595" / "1457" / "1595_1457_000000.opus").unlink()
    report = prepare(MlsConfig(root=corpus), tmp_path / "shards", seed=1)
    why = {row.key: row.reason for row in report.rejected}
    assert "1595_1457_000009.opus has no line there" in why["1595_1457_000009"]
    assert "there is no audio file" in why["1595_1457_000000"]
    assert report.rows == report.used + 2 == 10


def test_a_folder_of_another_name_or_without_the_lists_is_refused(corpus):
    (corpus / "train" / "limited_supervision" / "9hr" / "handles.txt").unlink()
    with pytest.raises(DataError, match="lists no rows of 9h"):
        mls.select(MlsConfig(root=corpus, train="9h"), 1)
    renamed = corpus.rename(corpus.with_name("italian_books"))
    with pytest.raises(DataError, match="is not called mls_LANGUAGE"):
        mls.select(MlsConfig(root=renamed), 1)
    with pytest.raises(DataError, match="is not a language of Multilingual LibriSpeech"):
        mls.select(MlsConfig(root=corpus), 1)
