"""Lines that others append, read on from where the last look ended."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.monitoring import line_tail
from launcher.monitoring.line_tail import LineTail


def read_all(tail):
    lines = []
    while True:
        new = tail.read()
        if new.is_anew:
            lines.clear()
        lines += new.lines
        if not new.has_more:
            return lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def tail(path, tmp_path):
    return LineTail(path, tmp_path)


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


def test_a_line_is_read_when_it_is_whole_and_once(path, tail):
    assert read_all(tail) == []
    append(path, b"one\ntw")
    assert read_all(tail) == [b"one"]
    append(path, b"o\nthree\n")
    assert read_all(tail) == [b"two", b"three"]
    assert tail.read().lines == []


@settings(max_examples=40)
@given(pieces=st.lists(st.binary(max_size=40), max_size=12), block=st.integers(1, 30))
def test_what_is_read_does_not_depend_on_when_it_was_looked_at(pieces, block, tmp_path_factory):
    """read(p1) + ... + read(pn) == whole lines of p1 ... pn, in blocks that are longer than any line"""
    folder = tmp_path_factory.mktemp("tail")
    path = folder / "x"
    tail = LineTail(path, folder)
    whole = b"".join(pieces)
    longest = max(map(len, whole.split(b"\n")))
    lines = []
    former = line_tail.BLOCK_BYTES
    line_tail.BLOCK_BYTES = longest + block
    try:
        for piece in pieces:
            append(path, piece)
            lines += read_all(tail)
    finally:
        line_tail.BLOCK_BYTES = former
    assert lines == whole.split(b"\n")[:-1]


@pytest.mark.parametrize(
    "written",
    [b"one\n", b"", b"ONE\ntwo\nthree\nfour\n", b"one\nTWO\nthree\n"],
    ids=["cut back", "emptied", "written anew and longer", "as long as before"],
)
def test_a_file_that_was_written_anew_is_read_from_its_beginning(path, tail, written):
    append(path, b"one\ntwo\nthree\n")
    assert len(read_all(tail)) == 3
    path.write_bytes(written)
    os.utime(path, ns=(1, 1))
    new = tail.read()
    assert new.is_anew
    assert new.lines == written.split(b"\n")[:-1]


def test_a_file_that_is_gone_and_back_is_read_from_its_beginning(path, tail):
    append(path, b"one\n")
    assert read_all(tail) == [b"one"]
    path.unlink()
    assert tail.read().is_anew
    append(path, b"one\ntwo\n")
    assert read_all(tail) == [b"one", b"two"]


def test_a_line_longer_than_a_block_is_passed_over_and_the_next_is_read(path, tail, monkeypatch):
    monkeypatch.setattr(line_tail, "BLOCK_BYTES", 8)
    append(path, b"one\n" + b"x" * 50 + b"\ntwo\n")
    assert read_all(tail) == [b"one", b"two"]


def plant(path, kind, elsewhere):
    elsewhere.write_text("secret\n")
    match kind:
        case "link":
            path.symlink_to(elsewhere)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_what_is_no_file_of_the_run_reads_as_empty(path, tail, kind, tmp_path_factory):
    plant(path, kind, tmp_path_factory.mktemp("elsewhere") / "secret")
    assert read_all(tail) == []
