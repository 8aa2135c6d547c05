"""`chorus prepare` of a published corpus: its options, the account of rows, and mistakes in one paragraph."""

import json

import pytest
from lookalikes import write_noise, write_text

from launcher.cli import main as chorus


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "LibriSpeech"
    for subset in ("train-clean-5", "dev-clean-2"):
        chapter = root / subset / "84" / "121123"
        for number in range(3):
            write_noise(chapter / f"84-121123-000{number}.flac")
        write_text(chapter / "84-121123.trans.txt", "84-121123-0000 GO", "84-121123-0001", "84-121123-0004 DO")
    return root


def test_prepare_shows_how_many_rows_were_used_and_why_the_others_were_not(corpus, tmp_path, capsys):
    options = ["--root", str(corpus), "--train", "train-clean-5", "--out", str(tmp_path / "shards")]
    assert chorus(["prepare", "librispeech", *options, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {split: part["utterances"] for split, part in shown["splits"].items()} == {"train": 1, "dev": 1}
    assert (shown["rows"], shown["used"], shown["rejected"]) == (8, 2, 6)
    kinds = {reason["kind"]: reason["rows"] for reason in shown["reasons"]}
    assert kinds == {"no text": 2, "no such file": 2, "recordings without a transcript": 2}
    assert chorus(["prepare", "librispeech", *options]) == 0
    assert "8 rows in: 2 used, 6 rejected: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "fragment"),
    [
        (["librispeech"], 2, "root is missing"),
        (["librispeech", "--root", "{root}", "--train", "train-clean-99"], 2, "train-clean-100"),
        (["librispeech", "--root", "{root}", "--train", "train-clean-100"], 3, "of train it has train-clean-5"),
        (["librispeech", "--root", "{root}/84"], 3, "is not LibriSpeech"),
        (["gigaspeech", "--root", "{root}"], 3, "There is no {root}/GigaSpeech.json"),
        (["mls", "--root", "{root}"], 3, "is not a language of Multilingual LibriSpeech"),
        (["common_voice", "--root", "{root}", "--train", "train,validated"], 2, "leave one out"),
        (["wenetspeech", "--root", "{root}", "--min-confidence", "2"], 2, "min_confidence"),
    ],
)
def test_a_mistake_is_one_paragraph_with_its_exit_code(corpus, tmp_path, capsys, options, code, fragment):
    given = [option.format(root=corpus) for option in options]
    assert chorus(["prepare", *given, "--out", str(tmp_path / "shards")]) == code
    message = capsys.readouterr().err.strip()
    assert fragment.format(root=corpus) in message
    assert "\n" not in message
    assert not (tmp_path / "shards").exists()


def test_any_number_of_jobs_gives_the_same_shards_and_none_is_a_mistake(corpus, tmp_path, capsys):
    for jobs in ("1", "3"):
        options = ["--root", str(corpus), "--out", str(tmp_path / jobs), "--jobs", jobs]
        assert chorus(["prepare", "librispeech", *options]) == 0
    for path in sorted((tmp_path / "1" / "train").iterdir()):
        assert path.read_bytes() == (tmp_path / "3" / "train" / path.name).read_bytes()
    capsys.readouterr()
    for jobs in ("0", "-1", "many", "1025"):
        with pytest.raises(SystemExit) as stop:
            chorus(["prepare", "librispeech", "--root", str(corpus), "--out", str(tmp_path / "x"), "--jobs", jobs])
        assert stop.value.code == 2
        assert "is no number of jobs; give one from 1 to 1024" in capsys.readouterr().err
