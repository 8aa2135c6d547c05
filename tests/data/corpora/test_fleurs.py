"""FLEURS as it is published: lists without names of columns, sentences that several speakers read, archives."""

import pytest
from lookalikes import texts, write_noise, write_text

from data.corpora import fleurs, prepare
from data.corpora.fleurs import FleursConfig
from data.errors import DataError


def row(name: str, raw: str, normalized: str) -> str:
    return f"903\t{name}\t{raw}\t{normalized}\tl ' u o m o |\t108800\tMALE"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "fleurs" / "it_it"
    for split in ("train", "dev", "test"):
        names = [f"100{number}.wav" for number in range(2)]
        for name in names:
            write_noise(folder / "audio" / split / name)
        # One sentence, read by two.
        write_text(folder / f"{split}.tsv", *(row(name, '"L\'uomo, nel 1976".', "l'uomo nel 1976") for name in names))
    return folder


def test_every_reading_of_a_sentence_is_an_utterance(corpus, tmp_path):
    report = prepare(FleursConfig(root=corpus.parent), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 2, "dev": 2, "test": 2}
    selection = fleurs.select(FleursConfig(root=corpus), 1)
    assert texts(selection, "train") == {"1000": "l'uomo nel 1976", "1001": "l'uomo nel 1976"}
    assert {utterance.language for utterance in selection.utterances} == {"it_it"}
    as_written = fleurs.select(FleursConfig(root=corpus, text="raw", normalize="none", punctuation="keep"), 1)
    assert texts(as_written, "dev")["1000"] == '"L\'uomo, nel 1976".'


def test_chinese_and_japanese_have_no_spaces(corpus):
    folder = corpus.rename(corpus.with_name("cmn_hans_cn"))
    write_text(folder / "dev.tsv", row("1000.wav", "这并不是告别。", "这 并 不 是 告 别"))
    assert texts(fleurs.select(FleursConfig(root=folder), 1), "dev") == {"1000": "这并不是告别"}


def test_rows_and_recordings_without_each_other_are_counted(corpus, tmp_path):
    write_text(corpus / "dev.tsv", row("1000.wav", "Sì", "sì"), row("gone.wav", "No", "no"), "one\ttwo")
    report = prepare(FleursConfig(root=corpus), tmp_path / "shards", seed=1)
    assert (report.rows, report.used) == (8, 5)
    why = [row.reason for row in report.rejected]
    for part in ("1001.wav has no line there", "there is no audio file", "the row has 2 fields, not 7"):
        assert any(part in reason for reason in why)


def test_packed_archives_and_other_folders_are_refused(corpus, tmp_path):
    (corpus / "audio" / "dev").rename(tmp_path / "moved")
    write_text(corpus / "audio" / "dev.tar.gz", "packed")
    with pytest.raises(DataError, match=r"dev\.tar\.gz is not unpacked\. Run: cd .*audio && tar xzf dev\.tar\.gz"):
        fleurs.select(FleursConfig(root=corpus), 1)
    with pytest.raises(DataError, match="is not FLEURS"):
        fleurs.select(FleursConfig(root=tmp_path / "nowhere"), 1)
    write_text(corpus.parent / "de_de" / "train.tsv")
    with pytest.raises(DataError, match="languages: de_de, it_it"):
        fleurs.select(FleursConfig(root=corpus.parent), 1)
