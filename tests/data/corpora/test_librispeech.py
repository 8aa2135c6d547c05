"""LibriSpeech as it is published: which split a subset becomes, and where every recording went."""

import json
import os
from pathlib import Path

import pytest
from lookalikes import of_split, reasons, summary, texts, write_noise, write_text

from data.corpora import librispeech, prepare
from data.corpora.librispeech import LibriSpeechConfig
from data.errors import DataError
from data.text.transcripts import RULES_VERSION


def write_chapter(subset: Path, speaker: str, chapter: str, lines: list[str], recordings: int) -> None:
    folder = subset / speaker / chapter
    for number in range(recordings):
        write_noise(folder / f"{speaker}-{chapter}-{number:04d}.flac")
    numbered = [f"{speaker}-{chapter}-{number:04d} {line}" for number, line in enumerate(lines)]
    write_text(folder / f"{speaker}-{chapter}.trans.txt", *numbered)


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "LibriSpeech"
    write_text(
        root / "SPEAKERS.TXT", ";ID  |SEX| SUBSET           |MINUTES| NAME", "1088 | F | train-clean-100 | 25 | A"
    )
    write_chapter(root / "train-clean-100", "1088", "134315", ["MISTER QUILTER'S MANNER", "A MAN SAID"], 2)
    write_chapter(root / "train-other-500", "20", "205", ["HE WAS"], 1)
    write_chapter(root / "dev-clean", "84", "121123", ["GO"], 1)
    write_chapter(root / "dev-other", "116", "288045", ["AS I APPROACHED"], 1)
    write_chapter(root / "test-clean", "121", "121726", ["ALSO"], 1)
    write_chapter(root / "test-other", "367", "130732", ["LOBSTERS"], 1)
    return root


def test_subsets_become_train_dev_and_a_split_for_each_test_set(corpus, tmp_path):
    report = prepare(LibriSpeechConfig(root=corpus), tmp_path / "shards", seed=1)
    counts = {split: part.utterances for split, part in report.splits.items()}
    assert counts == {"train": 3, "dev": 2, "test-clean": 1, "test-other": 1}
    assert report.account() == "7 rows in: 7 used, 0 rejected"


def test_each_dev_set_may_be_a_split_that_is_evaluated_beside_the_one_that_trainings_validate_on(corpus, tmp_path):
    joined = prepare(LibriSpeechConfig(root=corpus), tmp_path / "shards", seed=1)
    # What is there already stays as it is.
    each = prepare(LibriSpeechConfig(root=corpus, dev_splits="each"), tmp_path / "shards", seed=1)
    assert set(each.kept) == set(joined.splits)
    counts = {split: part.utterances for split, part in each.splits.items()}
    assert counts == {"train": 3, "dev": 2, "dev-clean": 1, "dev-other": 1, "test-clean": 1, "test-other": 1}
    clean = librispeech.select(LibriSpeechConfig(root=corpus, dev=("dev-clean",), dev_splits="each"), 1)
    assert texts(clean, "dev") == texts(clean, "dev-clean") == {"84-121123-0000": "go"}
    assert texts(clean, "dev-other") == {}


def test_texts_are_lower_case_with_their_apostrophes_and_their_shards_say_by_which_rules(corpus, tmp_path):
    config = LibriSpeechConfig(root=corpus, train=("train-clean-100",))
    selection = librispeech.select(config, 1)
    assert texts(selection, "train") == {
        "1088-134315-0000": "mister quilter's manner",
        "1088-134315-0001": "a man said",
    }
    assert {(row.speaker, row.language) for row in of_split(selection, "train")} == {("1088", "en")}
    as_published = librispeech.select(config.model_copy(update={"normalize": "none"}), 1)
    assert texts(as_published, "train")["1088-134315-0000"] == "MISTER QUILTER'S MANNER"
    prepare(config, tmp_path / "shards", seed=1)
    rules = summary(tmp_path / "shards" / "train")["text_rules"]
    assert (rules["version"], rules["normalize"], rules["punctuation"]) == (RULES_VERSION, "lower", "remove")


def test_mini_librispeech_is_read_from_the_folder_that_it_was_unpacked_in(tmp_path):
    root = tmp_path / "LibriSpeech"
    write_chapter(root / "train-clean-5", "1088", "134315", ["A MAN SAID"], 1)
    write_chapter(root / "dev-clean-2", "84", "121123", ["GO"], 1)
    selection = librispeech.select(LibriSpeechConfig(root=tmp_path), 1)
    assert {row.split for row in selection.utterances} == {"train", "dev"}


def test_it_is_taken_where_other_corpora_were_unpacked_beside_it(corpus, tmp_path):
    clips = tmp_path / "cv-corpus-20.0" / "it" / "clips"
    clips.mkdir(parents=True)
    selection = librispeech.select(LibriSpeechConfig(root=tmp_path), 1)
    assert len(selection.utterances) == len(librispeech.select(LibriSpeechConfig(root=corpus), 1).utterances)


def test_every_recording_and_every_line_is_accounted_for(corpus, tmp_path):
    chapter = corpus / "train-clean-100" / "1088" / "134315"
    write_noise(chapter / "1088-134315-0007.flac")
    write_text(
        chapter / "1088-134315.trans.txt", "1088-134315-0000 YES", "1088-134315-0001", "1088-134315-0002 NO FILE"
    )
    without_list = corpus / "train-clean-100" / "1088" / "134318"
    write_noise(without_list / "1088-134318-0000.flac")

    report = prepare(LibriSpeechConfig(root=corpus, train=("train-clean-100",)), tmp_path / "shards", seed=1)
    why = {row.key: row.reason for row in report.rejected}
    assert why.keys() == {"1088-134315-0001", "1088-134315-0002", "1088-134315-0007", "1088-134318-0000"}
    assert "text is empty" in why["1088-134315-0001"]
    assert "there is no audio file" in why["1088-134315-0002"]
    assert "134315.trans.txt: 1088-134315-0007.flac has no line there" in why["1088-134315-0007"]
    assert report.rows == report.used + 4 == 9


def test_names_and_texts_in_another_encoding_are_rejected_rows(corpus, tmp_path):
    chapter = corpus / "train-clean-100" / "1088" / "134315"
    lines = [b"1088-134315-0000 CAF\xc9", b"1088-\xe9-0001 YES", b"1088-134315-0001 \xef\xbf\xbd", b""]
    (chapter / "1088-134315.trans.txt").write_bytes(b"\n".join(lines))
    (chapter / os.fsdecode(b"1088-\xe9.flac")).touch()
    report = prepare(
        LibriSpeechConfig(root=corpus, train=("train-other-500", "train-clean-100")), tmp_path / "s", seed=1
    )
    assert (report.rows, report.used) == (9, 5)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert len([reason for reason in reasons if reason.endswith("it is not UTF-8")]) == 2
    assert any("a character that was lost" in reason for reason in reasons)


def test_a_recording_that_arrives_later_is_used_when_the_corpus_is_prepared_again(corpus, tmp_path):
    recording = corpus / "train-clean-100" / "1088" / "134315" / "1088-134315-0001.flac"
    content = recording.read_bytes()
    recording.unlink()
    config = LibriSpeechConfig(root=corpus)
    assert prepare(config, tmp_path / "shards", seed=1).used == 6
    recording.write_bytes(content)
    report = prepare(config, tmp_path / "shards", seed=1)
    assert (report.used, report.rejected) == (7, ())
    assert set(report.kept) == {"dev", "test-clean", "test-other"}


def test_a_recording_listed_twice_is_used_once(corpus):
    chapter = corpus / "train-clean-100" / "1088" / "134315"
    write_text(chapter / "1088-134315.trans.txt", "1088-134315-0000 YES", "1088-134315-0000 NO", "1088-134315-0001 YES")
    selection = librispeech.select(LibriSpeechConfig(root=corpus, train=("train-clean-100",)), 1)
    assert texts(selection, "train")["1088-134315-0000"] == "yes"
    assert "is already that of line 1" in reasons(selection)["1088-134315-0000"]


def test_a_subset_that_is_not_there_is_named_with_those_that_are(corpus):
    with pytest.raises(DataError, match=r"has no train-clean-360; of train it has train-clean-100, train-other-500"):
        librispeech.select(LibriSpeechConfig(root=corpus, train=("train-clean-100", "train-clean-360")), 1)


@pytest.mark.parametrize("content", [None, "train-clean-100.tar.gz"])
def test_a_folder_that_is_not_the_corpus_is_named_with_what_it_holds(tmp_path, content):
    root = tmp_path / "corpus"
    if content is not None:
        write_text(root / content, "packed")
    with pytest.raises(DataError, match=f"is not LibriSpeech.*{content or 'does not exist'}"):
        librispeech.select(LibriSpeechConfig(root=root), 1)
