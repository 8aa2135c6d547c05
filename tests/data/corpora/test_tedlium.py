"""TEDLIUM 3 as it is published: segments of SPHERE files, suffixes apart from words, stretches not to be scored."""

import pytest
from lookalikes import RATE_HZ, of_split, samples_by_key, texts, write_noise, write_text

from data.corpora import prepare, tedlium
from data.corpora.tedlium import TedliumConfig
from data.errors import DataError

TALK = "AaronHuey_2010X"


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "TEDLIUM_release-3"
    for split in ("train", "dev", "test"):
        folder = root / "legacy" / split
        write_noise(folder / "sph" / f"{TALK}{split}.sph", 3.0, format="NIST", subtype="PCM_16")
        talk = f"{TALK}{split} 1 {TALK}{split}"
        write_text(
            folder / "stm" / f"{TALK}{split}.stm",
            f"{talk} 0 0.3 <o,,unknown> ignore_time_segment_in_scoring",
            f"{talk} 0.30 1.30 <o,f0,male> it 's what we 've <unk> done",
            f"{talk} 2.00 2.50 <o,f0,male> give 'em ten",
        )
    return root


def test_segments_have_their_lengths_and_what_is_not_to_be_scored_is_counted(corpus, tmp_path):
    report = prepare(TedliumConfig(root=corpus), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 2, "dev": 2, "test": 2}
    assert (report.rows, len(report.rejected)) == (9, 3)
    assert all("it is not to be scored" in row.reason for row in report.rejected)
    assert samples_by_key(tmp_path / "shards" / "train") == {
        f"{TALK}train-0000030-0000130": RATE_HZ,
        f"{TALK}train-0000200-0000250": RATE_HZ // 2,
    }


def test_suffixes_are_joined_to_their_words_and_other_apostrophes_are_not(corpus):
    selection = tedlium.select(TedliumConfig(root=corpus.parent), 1)
    assert list(texts(selection, "dev").values()) == ["it's what we've done", "give em ten"]
    assert {row.speaker for row in of_split(selection, "dev")} == {f"{TALK}dev"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{TALK}train 1 someone 1.0", "not a line of STM"),
        (f"{TALK}train 1 someone zero 1.0 <o,f0,male> text", "not a line of STM"),
        (f"{TALK}train 1 someone 1.0 nan <o,f0,male> text", "not a line of STM"),
        (f"{TALK}train 1 someone 1.0 2.0 <o,f0,male>", "its text is empty"),
        (f"{TALK}train 1 someone 1.0 2.0 <o,f0,male> <unk>", "nothing is left of its text"),
        (f"{TALK}train 1 someone 2.0 1.0 <o,f0,male> text", "is not positive"),
        (f"{TALK}train 1 someone 8.0 9.0 <o,f0,male> text", "lies outside of"),
        ("Nobody_2011 1 Nobody 1.0 2.0 <o,f0,male> text", "there is no audio file"),
    ],
)
def test_a_line_that_cannot_be_used_takes_no_other_with_it(corpus, tmp_path, line, reason):
    stm = corpus / "legacy" / "train" / "stm" / f"{TALK}train.stm"
    with stm.open("a", encoding="utf-8") as file:
        file.write(f";; a comment\n{line}\n")
    report = prepare(TedliumConfig(root=corpus), tmp_path / "shards", seed=1)
    assert (report.rows, report.used) == (10, 6)
    assert any(reason in row.reason for row in report.rejected)


def test_a_talk_without_segments_is_counted_and_a_folder_without_legacy_refused(corpus, tmp_path):
    write_noise(corpus / "legacy" / "train" / "sph" / "Silent_2011.sph", format="NIST", subtype="PCM_16")
    rejected = tedlium.select(TedliumConfig(root=corpus), 1).rejected
    assert any("Silent_2011.sph has no line there" in row.reason for row in rejected)
    with pytest.raises(DataError, match="is not TEDLIUM 3"):
        tedlium.select(TedliumConfig(root=tmp_path / "nowhere"), 1)
