"""AISHELL-1 as it is published: archives to be unpacked, spaces between words, recordings without a transcript."""

import pytest
from lookalikes import of_split, summary, texts, write_noise, write_text

from data.corpora import aishell, prepare
from data.corpora.aishell import AishellConfig
from data.errors import DataError


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "data_aishell"
    for split, names in {
        "train": ("BAC009S0002W0122", "BAC009S0002W0123", "BAC009S0002W0456"),
        "dev": ("BAC009S0724W0121",),
        "test": ("BAC009S0764W0121",),
    }.items():
        for name in names:
            write_noise(root / "wav" / split / name[6:11] / f"{name}.wav")
    write_text(
        root / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购",
        "BAC009S0002W0123 也 成为 地方 政府 的 眼中 钉",
        "BAC009S0724W0121 广州市 房地产 中介 协会 分析",
        "BAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况",
    )
    return root


def test_the_spaces_between_words_are_removed_and_the_shards_say_so(corpus, tmp_path):
    selection = aishell.select(AishellConfig(root=corpus), 1)
    assert texts(selection, "train") == {
        "BAC009S0002W0122": "而对楼市成交抑制作用最大的限购",
        "BAC009S0002W0123": "也成为地方政府的眼中钉",
    }
    assert {(row.speaker, row.language) for row in of_split(selection, "train")} == {("S0002", "zh")}
    prepare(AishellConfig(root=corpus.parent), tmp_path / "shards", seed=1)
    assert "zh" in summary(tmp_path / "shards" / "dev")["text_rules"]["spaces"]


def test_a_recording_without_a_transcript_and_a_transcript_without_a_recording_are_counted(corpus, tmp_path):
    (corpus / "wav" / "dev" / "S0724" / "BAC009S0724W0121.wav").unlink()
    report = prepare(AishellConfig(root=corpus), tmp_path / "shards", seed=1)
    why = {row.key: row.reason for row in report.rejected}
    assert why.keys() == {"BAC009S0002W0456", "BAC009S0724W0121"}
    assert "BAC009S0002W0456.wav has no line there" in why["BAC009S0002W0456"]
    assert "there is no audio file BAC009S0724W0121.wav" in why["BAC009S0724W0121"]
    assert (report.rows, report.used) == (5, 3)


def test_archives_that_are_still_packed_are_named_with_the_command_that_unpacks_them(corpus):
    write_text(corpus / "wav" / "S0765.tar.gz", "packed")
    transcripts = corpus / "transcript" / "aishell_transcript_v0.8.txt"
    with transcripts.open("a", encoding="utf-8") as file:
        file.write("BAC009S0765W0121 一二线 城市\n")
    rejected = aishell.select(AishellConfig(root=corpus), 1).rejected
    assert any("S0765.tar.gz, which holds BAC009S0765W0121.wav, is not unpacked" in row.reason for row in rejected)

    for split in ("train", "dev", "test"):
        (corpus / "wav" / split).rename(corpus / f"moved-{split}")
    with pytest.raises(DataError, match=r"not unpacked\. Run: cd .*wav && for archive in"):
        aishell.select(AishellConfig(root=corpus), 1)
