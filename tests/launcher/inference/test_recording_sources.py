"""What a user may name to be transcribed: files, folders, patterns, URLs, standard input; and what is refused."""

import io
import os
import sys
from types import SimpleNamespace

import fsspec
import pytest

from data.errors import DataError
from launcher.errors import ConfigError
from launcher.inference import recording_sources
from launcher.inference.recording_sources import RecordingSource, find_recordings, local_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.wav", "a.MP3", "deep/er/c.m4a", "notes.txt", ".hidden.wav", ".git/d.wav", "x [1].flac"):
        path = tmp_path / "talks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"RIFF")
    os.symlink(tmp_path / "talks", tmp_path / "talks" / "deep" / "circle")
    return tmp_path


def names(arguments: list[str]) -> list[str]:
    return [source.name for source in find_recordings(arguments)]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("talks", ["talks/a.MP3", "talks/b.wav", "talks/deep/er/c.m4a", "talks/x [1].flac"]),
        ("talks/*.wav", ["talks/b.wav"]),
        ("talks/**/*.m4a", ["talks/deep/er/c.m4a"]),
        ("talks/[ab].*", ["talks/a.MP3", "talks/b.wav"]),
        # A file that is there is that file, whatever is in its name.
        ("talks/x [1].flac", ["talks/x [1].flac"]),
        ("talks/notes.txt", ["talks/notes.txt"]),
        ("none/*.wav", ["none/*.wav"]),
        ("gone.wav", ["gone.wav"]),
        ("n" * 300 + ".wav", ["n" * 300 + ".wav"]),
        ("talks/deep/circle/deep/er", ["talks/deep/circle/deep/er/c.m4a"]),
        ("-", ["-"]),
    ],
)
def test_what_is_named_becomes_recordings_in_order(folder, argument, expected):
    assert names([argument]) == expected


def test_the_order_is_that_of_the_arguments(folder):
    assert names(["gone.wav", "talks/*.wav", "-", "talks/a.MP3"]) == ["gone.wav", "talks/b.wav", "-", "talks/a.MP3"]


def test_outputs_keep_the_structure_of_a_folder(folder):
    assert [str(source.output) for source in find_recordings(["talks", "talks/b.wav"])] == [
        *("a.MP3", "b.wav", "deep/er/c.m4a", "x [1].flac", "b.wav"),
    ]


def test_a_folder_without_recordings_stays_and_is_named_when_its_turn_comes(folder):
    (folder / "empty").mkdir()
    assert names(["empty"]) == ["empty"]


@pytest.mark.parametrize(
    "url",
    [
        "gopher://host/a.wav",
        "reference://a.json",
        "simplecache::http://host/a.wav",
        "file::memory://a.wav",
        "zip://a.wav::http://host/b.zip",
        "HTTP://host/a.wav",
        "github://owner/repo/a.wav",
        "://a.wav",
    ],
)
def test_urls_of_other_protocols_and_chains_are_refused(url):
    with pytest.raises(ConfigError, match="is not opened"):
        find_recordings([url])


@pytest.mark.parametrize("url", ["https://me:secret@host/a.wav", "s3://bucket/a.wav?X-Amz-Signature=secret"])
def test_a_url_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError) as refusal:
        find_recordings([url])
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "output"),
    [
        ("http://host/a%20b.wav?download=1", "a b.wav"),
        ("http://host/", "recording"),
        ("http://host/..%2f..%2fetc%2fpasswd.wav", "_.._etc_passwd.wav"),
        ("http://host/..", "recording"),
        ("s3://bucket/folder/x.flac", "x.flac"),
    ],
)
def test_the_name_of_an_output_is_one_name_whatever_a_url_says(url, output):
    (source,) = find_recordings([url])
    assert str(source.output) == output


def test_urls_are_read_into_a_file_that_is_gone_afterwards():
    with fsspec.open("memory://talks/one.wav", "wb") as file:
        file.write(b"sound")
    with fsspec.open("memory://talks/two.flac", "wb") as file:
        file.write(b"more")
    found = find_recordings(["memory://talks/one.wav", "memory://talks/*.flac"])
    contents = []
    for source in found:
        with local_file(source) as path:
            contents.append((path.suffix, path.read_bytes()))
        assert not path.exists()
    assert contents == [(".wav", b"sound"), (".flac", b"more")]


@pytest.mark.parametrize("url", ["memory://nothing/here.wav", "file:///nowhere/a.wav"])
def test_a_url_without_a_recording_is_named(url):
    (source,) = find_recordings([url])
    with pytest.raises(DataError, match="cannot be read"), local_file(source):
        pass


def test_standard_input_is_read_once_and_to_its_end(monkeypatch):
    with pytest.raises(ConfigError, match="more than once"):
        find_recordings(["-", "a.wav", "-"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"sound" * 1000)))
    with local_file(find_recordings(["-"])[0]) as path:
        assert path.read_bytes() == b"sound" * 1000


@pytest.mark.parametrize(("stream", "words"), [(None, "is closed"), (io.BytesIO(b""), "is empty")])
def test_standard_input_without_a_recording_is_said(monkeypatch, stream, words):
    monkeypatch.setattr(sys, "stdin", None if stream is None else SimpleNamespace(buffer=stream))
    with pytest.raises(DataError, match=words), local_file(find_recordings(["-"])[0]):
        pass


def test_what_has_no_end_is_given_up_at_a_bound(monkeypatch):
    class Endless(io.RawIOBase):
        num_read = 0

        def read(self, size):
            self.num_read += size
            return b"x" * size

    stream = Endless()
    monkeypatch.setattr(recording_sources, "MAX_BYTES", 3 * recording_sources.PIECE_BYTES)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(DataError, match="more than the"), local_file(find_recordings(["-"])[0]):
        pass
    assert stream.num_read == 4 * recording_sources.PIECE_BYTES


def test_a_file_is_read_where_it_lies(folder):
    with local_file(RecordingSource("talks/b.wav", None)) as path:
        assert str(path) == "talks/b.wav"
