"""Lists of published corpora that were written in another encoding or edited since, and corpora that are not there."""

from pathlib import Path

import pytest
from lookalikes import write_noise

from data.corpora import CORPORA
from data.corpora.registry import select
from data.corpora.rejections import describe_rejections
from data.errors import DataError
from launcher.cli import main as chorus

# Per corpus: its list with one line to be filled with a text, what stands before its rows, a row, and its recording.
LISTS = {
    "librispeech": ("LibriSpeech/train-clean-5/1/2/1-2.trans.txt", "", "1-2-{n} {text}", "1-2-{n}.flac"),
    "aishell": (
        "data_aishell/transcript/aishell_transcript_v0.8.txt",
        "",
        "BAC009S0002W{n} {text}",
        "../wav/train/S0002/BAC009S0002W{n}.wav",
    ),
    "common_voice": ("it/train.tsv", "client_id\tpath\tsentence\n", "a\t{n}.mp3\t{text}", "clips/{n}.mp3"),
    "tedlium": (
        "TEDLIUM_release-3/legacy/train/stm/talk.stm",
        "",
        "talk 1 a {n}.0 {n}.1 <o,f0,male> {text}",
        "../sph/talk.sph",
    ),
    "mls": ("mls_french/train/transcripts.txt", "", "1_2_{n}\t{text}", "audio/1/2/1_2_{n}.flac"),
    "voxpopuli": ("fr/asr_train.tsv", "id\tnormalized_text\n", "2010_{n}\t{text}", "2010/2010_{n}.ogg"),
    "fleurs": ("fr_fr/train.tsv", "", "7\t{n}.wav\tx\t{text}\tx\t8\tMALE", "audio/train/{n}.wav"),
    "asterisk": ("fr/core-sounds-fr.txt", "", "n{n}: {text}", "n{n}.wav"),
}


def write_corpus(root: Path, name: str, *texts: bytes) -> Path:
    """A list whose rows have these texts, with a recording of each; returns what is to be given as root."""
    place, head, row, recording = LISTS[name]
    path = root / place
    path.parent.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        before, after = row.format(n=number, text="\n").split("\n")
        lines.append(before.encode() + text + after.encode() + b"\n")
        audio = path.parent / recording.format(n=number)
        audio.parent.mkdir(parents=True, exist_ok=True)
        if not audio.exists():
            write_noise(audio, format={".ogg": "OGG", ".sph": "NIST"}.get(audio.suffix))
    path.write_bytes(head.encode() + b"".join(lines))
    return root / "mls_french" if name == "mls" else root


@pytest.mark.parametrize("name", LISTS)
def test_a_row_in_another_encoding_is_rejected_and_takes_no_other_with_it(tmp_path, name):
    root = write_corpus(tmp_path, name, b"soleil", "été".encode("latin-1"), "été".encode())
    selection = select(CORPORA[name].config(name=name, root=root), 1)
    assert [utterance.text for utterance in selection.utterances] == ["soleil", "été"]
    assert "1 rejected: 1 not UTF-8" in describe_rejections(selection.rejected)


@pytest.mark.parametrize("name", ["librispeech", "aishell", "mls"])
@pytest.mark.parametrize("blank", ["\t", " ", "  ", " \t"])
def test_whatever_blank_parts_a_name_from_its_text(tmp_path, name, blank, monkeypatch):
    place, head, row, recording = LISTS[name]
    edited = row.replace("\t{text}", " {text}").replace(" {text}", blank + "{text}")
    monkeypatch.setitem(LISTS, name, (place, head, edited, recording))
    root = write_corpus(tmp_path, name, b"one two")
    (utterance,) = select(CORPORA[name].config(name=name, root=root), 1).utterances
    assert utterance.text == "one two"


@pytest.mark.parametrize("name", ["asterisk", "fleurs", "gigaspeech", "librispeech"])
def test_a_corpus_that_is_not_there_is_said_in_the_options_of_the_command(tmp_path, capsys, name):
    absent = tmp_path / "nowhere"
    assert chorus(["prepare", name, "--root", str(absent), "--out", str(tmp_path / "out")]) == 3
    message = capsys.readouterr().err
    assert str(absent) in message
    assert "--root" in message
    assert "corpus." not in message.replace("docs/corpora.md", "")
    with pytest.raises(DataError, match=r"corpus\.root"):
        select(CORPORA[name].config(name=name, root=absent), 1)


@pytest.mark.parametrize("name", ["asterisk", "fleurs", "voxpopuli", "common_voice", "tedlium"])
def test_what_lies_in_place_of_a_corpus_is_said(tmp_path, name):
    with pytest.raises(DataError, match="It holds nothing"):
        select(CORPORA[name].config(name=name, root=tmp_path), 1)
    (tmp_path / "archive.tar.gz").touch()
    with pytest.raises(DataError, match=r"It holds archive\.tar\.gz"):
        select(CORPORA[name].config(name=name, root=tmp_path), 1)
