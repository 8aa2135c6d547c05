"""Common Voice as it is published: lists whose columns change, and lists that share rows with dev and test."""

import pytest
from lookalikes import of_split, reasons, texts, write_noise, write_text
from pydantic import ValidationError

from data.corpora import common_voice, prepare
from data.corpora.common_voice import CommonVoiceConfig
from data.errors import DataError

COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


def row(speaker: str, name: str, sentence: str) -> str:
    return "\t".join([speaker * 128, name, "0" * 64, sentence, "", "2", "0", "", "", "", "", "it", ""])


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "cv-corpus-20.0-2024-12-06" / "it"
    for number in range(1, 7):
        write_noise(folder / "clips" / f"common_voice_it_{number}.mp3", 0.4, rate_hz=32000)
    header = COLUMNS.replace(" ", "\t")
    first = row("a", "common_voice_it_1.mp3", '"Quell’operatore è già loggato."')
    dev = row("b", "common_voice_it_2.mp3", "Prego digitare!")
    test = row("c", "common_voice_it_3.mp3", "Tutti i circuiti sono occupati.")
    write_text(folder / "train.tsv", header, first)
    write_text(folder / "dev.tsv", header, dev)
    write_text(folder / "test.tsv", header, test)
    others = [
        row("b", "common_voice_it_4.mp3", "Password errata."),
        row("d", "common_voice_it_5.mp3", "tutti i circuiti sono occupati"),
        row("d", "common_voice_it_6.mp3", "Perché no?"),
    ]
    write_text(folder / "validated.tsv", header, first, dev, test, *others)
    write_text(folder / "clip_durations.tsv", "clip\tduration[ms]", "common_voice_it_1.mp3\t400")
    return folder


def test_lists_are_splits_and_texts_lose_their_case_and_punctuation(corpus, tmp_path):
    config = CommonVoiceConfig(root=corpus.parent)
    selection = common_voice.select(config, 1)
    assert texts(selection, "train") == {"common_voice_it_1": "quell'operatore è già loggato"}
    assert [(row.speaker, row.language) for row in of_split(selection, "train")] == [("a" * 128, "it")]
    report = prepare(config, tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 1, "dev": 1, "test": 1}


def test_columns_are_read_by_their_names_in_any_order(corpus):
    write_text(corpus / "train.tsv", "sentence\tpath\tclient_id", "Sì\tcommon_voice_it_1\tx")
    write_text(corpus / "dev.tsv", "path\tsentence", "common_voice_it_2.mp3\tNo")
    selection = common_voice.select(CommonVoiceConfig(root=corpus), 1)
    (train,) = of_split(selection, "train")
    assert (train.text, train.speaker, train.clips[0].path.name) == ("sì", "x", "common_voice_it_1.mp3")
    assert texts(selection, "dev") == {"common_voice_it_2": "no"}


def test_validated_gives_nothing_of_the_recordings_speakers_and_sentences_of_dev_and_test(corpus):
    selection = common_voice.select(CommonVoiceConfig(root=corpus, train=("validated",)), 1)
    assert texts(selection, "train").keys() == {"common_voice_it_1", "common_voice_it_6"}
    assert sorted(row.reason for row in selection.rejected) == [
        "validated.tsv: its recording belongs to dev",
        "validated.tsv: its recording belongs to test",
        "validated.tsv: its sentence belongs to test",
        "validated.tsv: its speaker belongs to dev",
    ]


def test_train_and_validated_which_holds_it_are_not_joined(corpus):
    with pytest.raises(ValidationError, match="validated, which holds all of train"):
        CommonVoiceConfig(root=corpus, train=("train", "validated"))


def test_broken_rows_and_missing_clips_take_no_other_with_them(corpus, tmp_path):
    with (corpus / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("short row\n")
        file.write(row("e", "common_voice_it_99.mp3", "Non c'è") + "\n")
        file.write(row("e", "common_voice_it_5.mp3", "...") + "\n")
        file.write(row("e", "common_voice_it_6.mp3", '"Mai') + "\n")
    report = prepare(CommonVoiceConfig(root=corpus), tmp_path / "shards", seed=1)
    assert (report.rows, report.used, len(report.rejected)) == (7, 4, 3)
    assert {row.line for row in report.rejected} == {3, 4, 5}


def test_a_language_has_to_be_named_where_there_are_several(corpus):
    write_noise(corpus.parent / "rm-sursilv" / "clips" / "a.mp3")
    with pytest.raises(DataError, match=r"languages: it, rm-sursilv\. Set corpus\.language"):
        common_voice.select(CommonVoiceConfig(root=corpus.parent), 1)
    chosen = common_voice.select(CommonVoiceConfig(root=corpus.parent, language="it"), 1)
    assert len(chosen.utterances) == 3
    assert reasons(chosen) == {}


def test_a_folder_that_is_no_release_and_a_list_without_a_column_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="is no release of Common Voice"):
        common_voice.select(CommonVoiceConfig(root=tmp_path / "nowhere"), 1)
    write_text(corpus / "train.tsv", "path\ttext", "a.mp3\tSì")
    with pytest.raises(DataError, match="has no sentence column"):
        common_voice.select(CommonVoiceConfig(root=corpus), 1)
