"""VoxPopuli as it is published: the layout of its own scripts, and that of its archives."""

import pytest
from lookalikes import of_split, texts, write_noise, write_text

from data.corpora import prepare, voxpopuli
from data.corpora.voxpopuli import VoxPopuliConfig
from data.errors import DataError

SESSION = "20180613-0900-PLENARY-2-en_20180613-09:13:31"


@pytest.fixture
def scripted(tmp_path):
    folder = tmp_path / "vox" / "transcribed_data" / "en"
    for split, number in (("train", 0), ("dev", 1), ("test", 2)):
        name = f"{SESSION}_{number}"
        write_noise(folder / "2018" / f"{name}.ogg", 0.3, format="OGG", subtype="VORBIS")
        write_text(
            folder / f"asr_{split}.tsv",
            "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender",
            f"{name}\tIn 2018, we agreed.\tin twenty eighteen we agreed\t28150\t{split}\tmale",
        )
    return folder


def test_the_layout_of_its_scripts_is_read_by_the_year_of_the_session(scripted, tmp_path):
    root = scripted.parent.parent
    report = prepare(VoxPopuliConfig(root=root), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 1, "dev": 1, "test": 1}
    (row,) = of_split(voxpopuli.select(VoxPopuliConfig(root=root), 1), "train")
    assert (row.key, row.speaker, row.language) == (f"{SESSION}_0".replace(":", "_"), "28150", "en")
    assert row.text == "in twenty eighteen we agreed"
    raw = voxpopuli.select(VoxPopuliConfig(root=scripted, text="raw"), 1)
    assert list(texts(raw, "train").values()) == ["in 2018 we agreed"]


def test_the_layout_of_its_archives_is_read_by_the_names_of_recordings(tmp_path):
    folder = tmp_path / "en"
    write_noise(folder / "train" / "train_part_0" / "speech_1.wav", 0.3)
    write_text(
        folder / "asr_train.tsv",
        "id\traw_text\tnormalized_text\tspeaker_id\tgender\tis_gold_transcript\taccent",
        "speech_1\tYes.\tyes\tNone\tmale\tTrue\tNone",
        "speech_2\tNo.\tno\tNone\tmale\tTrue\tNone",
        "speech_3\tHm.\t\tNone\tmale\tTrue\tNone",
    )
    write_noise(folder / "train" / "train_part_1" / "speech_4.wav", 0.3)
    report = prepare(VoxPopuliConfig(root=folder), tmp_path / "shards", seed=1)
    assert (report.rows, report.used) == (4, 1)
    why = {row.key: row.reason for row in report.rejected}
    assert why.keys() == {"speech_2", "speech_3", "speech_4"}
    assert "speech_4.wav has no line there" in why["speech_4"]
    assert of_split(voxpopuli.select(VoxPopuliConfig(root=folder), 1), "train")[0].speaker == ""


def test_a_clone_of_the_hub_is_read_with_the_archives_that_are_unpacked(tmp_path):
    folder = tmp_path / "voxpopuli" / "data" / "en"
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
    names = [f"20100210-0900-PLENARY-3-en_20100210-09:06:43_{number}" for number in range(3)]
    rows = [f"{name}\tRaw.\twords {number}\t1\ttrain\tmale\tFalse\tNone" for number, name in enumerate(names)]
    write_text(folder / "asr_train.tsv", header, *rows)
    # Members of the archives have a folder of their own inside.
    write_noise(folder / "train" / "train_part_0" / "train_part_0" / f"{names[0]}.wav", 0.3)
    for number in (0, 1):
        write_text(folder / "train" / f"train_part_{number}.tar.gz", "packed")
    selection = voxpopuli.select(VoxPopuliConfig(root=tmp_path / "voxpopuli"), 1)
    assert list(texts(selection, "train").values()) == ["words 0"]
    assert len(selection.rejected) == 2
    for row in selection.rejected:
        assert "train_part_1.tar.gz is not unpacked" in row.reason


def test_english_with_accents_is_english(tmp_path):
    folder = tmp_path / "data" / "en_accented"
    write_noise(folder / "test" / "a.wav", 0.3)
    write_text(folder / "asr_test.tsv", "id\traw_text\tnormalized_text\tspeaker_id\taccent", "a\tYes.\tyes\t1\ten_lt")
    (row,) = voxpopuli.select(VoxPopuliConfig(root=tmp_path, language="en_accented"), 1).utterances
    assert (row.split, row.language, row.text) == ("test", "en", "yes")


def test_a_language_that_is_not_there_is_named_with_those_that_are(scripted, tmp_path):
    write_text(scripted.parent / "de" / "asr_dev.tsv", "id\tnormalized_text")
    root = scripted.parent.parent
    with pytest.raises(DataError, match=r"has de, en, and corpus\.language is 'fr'"):
        voxpopuli.select(VoxPopuliConfig(root=root, language="fr"), 1)
    assert len(voxpopuli.select(VoxPopuliConfig(root=root, language="en"), 1).utterances) == 3
    with pytest.raises(DataError, match="is not VoxPopuli"):
        voxpopuli.select(VoxPopuliConfig(root=tmp_path / "nowhere"), 1)
