"""Pipes, devices, sockets, folders and circles of links in the place of files: none is waited for, or read."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from data.containers import AudioError
from data.containers.g722 import decode_g722
from data.containers.parquet_cells import Cell, read_cell
from data.containers.stream import Stream, StreamFile
from data.containers.streams import read_streams
from data.corpora.published import PublishedCorpusConfig, RowCollector
from data.corpora.segment_list import read_segments
from data.errors import DataError
from data.files import (
    MAX_LINES_BYTES,
    NoRegularFileError,
    check_regular,
    file_sha256,
    open_regular,
    read_json,
    read_lines,
    regular_descriptor,
)
from data.manifests.manifest import read_manifest
from data.manifests.tables import read_table
from data.remote.settings import StorageConfig
from data.shard_tools.rewriting import Command, rewrite
from data.shards.reader import RangeError, RangeReader
from launcher.errors import place_problem
from launcher.inference.search import read_hotwords, read_scorer
from launcher.recipe.search import HotwordsConfig, LanguageModelConfig
from launcher.tracking import read_last_rows, read_metrics

KINDS = ["pipe", "device", "socket", "folder", "circle"]


def plant(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put something that is no file in the place of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path.name)
    else:
        # The address of a socket has 108 bytes at most.
        monkeypatch.chdir(path.parent)
        with closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind(path.name)
    return path


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """What is waited for, or read without end, ends with an error that is none of ours."""

    def fail(number: int, frame: object) -> None:
        raise TimeoutError("it was waited for")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_opens_files_of_others_refuses_what_is_none(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plant(tmp_path / "file", kind, monkeypatch)
    for read in (open_regular, regular_descriptor, check_regular, file_sha256, read_json):
        with pytest.raises(OSError, match=r"no regular file|symbolic links") as refused:
            read(path)
        if kind != "circle":
            assert isinstance(refused.value, NoRegularFileError)
            # Whoever takes damaged content into account takes this into account too.
            assert isinstance(refused.value, ValueError)
        # Where nobody does, it is a paragraph all the same.
        assert str(path) in (place_problem(refused.value) or "")


# The file of a corpus in the place of which something else lies, and files that stand beside it.
CORPUS_FILES = {
    "list.jsonl": ("list.jsonl", ()),
    "list.json": ("list.json", ()),
    "list.csv": ("list.csv", ()),
    "list.jsonl.gz": ("list.jsonl.gz", ()),
    "Parquet": ("t.parquet", ()),
    "Parquet in a folder": ("", ("t.parquet",)),
    "Arrow": ("t.arrow", ()),
    "a tar": ("", ("train-0.tar",)),
    "metadata.csv": ("", ("metadata.csv",)),
    "wav.scp": ("", ("wav.scp",)),
    "cuts of Shar": ("", ("cuts.000000.jsonl.gz", "recording.000000.tar")),
    "a manifest of NeMo": ("", ("tarred_audio_manifest.json", "audio_0.tar")),
    "state.json": ("", ("state.json", "dataset_info.json")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CORPUS_FILES)
def test_a_corpus_of_what_is_no_file_is_one_clear_error_or_a_rejected_row(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("Parquet", "Parquet in a folder", "Arrow"):
        pytest.importorskip("pyarrow")
    named, beside = CORPUS_FILES[name]
    for place in beside or (named,):
        plant(tmp_path / place, kind, monkeypatch)
    try:
        utterances, rejected = read_manifest(tmp_path / named)
    except DataError:
        return
    assert not utterances
    assert rejected


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_segments_that_is_none_is_one_clear_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plant(tmp_path / "GigaSpeech.json", kind, monkeypatch)
    with pytest.raises(DataError, match=r"GigaSpeech\.json"):
        list(read_segments(path, "text_tn", RowCollector(PublishedCorpusConfig(root=tmp_path), "en")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_that_was_exchanged_after_it_was_looked_at_is_not_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plant(tmp_path / "a.g722", kind, monkeypatch)

    def read_stream(path: Path) -> None:
        with StreamFile(path, Stream(0, 100)) as file:
            file.read()

    def read_parquet(path: Path) -> None:
        pytest.importorskip("pyarrow")
        read_cell(path, Cell("a", "audio", 0, 0))

    readers: list[Callable[[Path], object]] = [decode_g722, read_streams, read_stream, read_parquet]
    for read in readers:
        with pytest.raises((AudioError, OSError), match=r"no regular file|symbolic links"):
            read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_no_file_is_a_range_that_cannot_be_read_and_is_not_tried_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "shard-000000.tar", kind, monkeypatch)
    reader = RangeReader(tmp_path, StorageConfig(retry_s=300))
    with pytest.raises(RangeError, match="1 attempt"):
        reader.read("shard-000000.tar", 0, 512)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_search_that_are_none_are_one_clear_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plant(tmp_path / "words", kind, monkeypatch)
    # Refused before it is used.
    tokenizer: object = None
    with pytest.raises(DataError, match=r"hotwords in .* cannot be read"):
        read_hotwords(HotwordsConfig(path=path), tokenizer)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="language model of the search cannot be read"):
        read_scorer(LanguageModelConfig(path=path, weight=1.0), tokenizer)  # pyright: ignore[reportArgumentType]


def test_a_table_that_is_no_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet is no regular file"):
        list(read_table(tmp_path / "t.parquet", ("audio",)))


def test_a_set_of_shards_that_is_a_circle_of_links_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plant(tmp_path / "shards", "circle", monkeypatch)
    for out in (tmp_path / "out", path):
        with pytest.raises(DataError, match=r"no shards|lies in or around"):
            rewrite([path], out, Command("reshard", {}, 60.0))


def test_a_file_of_holes_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_LINES_BYTES + 1)
    with pytest.raises(ValueError, match="more than"):
        next(read_lines(path, 2**20))
    with pytest.raises(DataError, match="holds more than"):
        read_manifest(path)
    assert list(read_metrics(path)) == []
    assert list(read_metrics(path, thin_to=5)) == []
    assert read_last_rows(path, 5) == []
