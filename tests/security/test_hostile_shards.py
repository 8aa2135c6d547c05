"""Shards from strangers: names stay in their folder, and nothing in them exhausts memory or time."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from limits import run_limited

from data.audio import Clip, Utterance
from data.containers.tar_members import read_members
from data.errors import DataError
from data.files import is_file_name, parse_json, read_json
from data.npz import load_arrays
from data.shards.index import INDEX_COLUMNS, read_index, read_summary
from data.shards.reader import ShardReader, UtteranceError
from data.shards.writer import write_split

RATE_HZ = 8000
KEY = "u0"


def flac_of(num_samples: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(num_samples, np.float32), RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


FLAC = flac_of(800)
LABEL = json.dumps({"text": "one", "speaker": "", "language": ""}).encode()


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.type = kind
    return info, content


def write_hostile_split(folder: Path, content: bytes, samples: int = 800, **changes) -> Path:
    """A split of one utterance, whose range is the whole of a tar; `changes` are those of its shard."""
    folder.mkdir(parents=True)
    (folder / "shard-000000.tar").write_bytes(content)
    shard = {"name": "shard-000000.tar", "utterances": 1, "seconds": 0.1, "sha256": "0" * 64, "bytes": len(content)}
    summary = {"format": 1, "sample_rate_hz": RATE_HZ, "made_from": "", "shards": [shard | changes], "rejected": []}
    (folder / "shards.json").write_text(json.dumps(summary))
    values = {"shard": 0, "offset": 0, "size": len(content), "samples": samples, "text_length": 3}
    columns = {name: np.array([values[name]], kind) for name, kind in INDEX_COLUMNS.items()}
    np.savez(folder / "index.npz", **columns)
    row = {"key": KEY, "text": "one", "speaker": "", "language": ""}
    (folder / "transcripts.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def sparse_member(name: str, real_bytes: int) -> tuple[tarfile.TarInfo, bytes]:
    info, content = member(name, b"0\n")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": name}
    info.pax_headers |= {"GNU.sparse.size": str(real_bytes), "GNU.sparse.map": f"{real_bytes},0"}
    return info, content


def long_pax_header() -> bytes:
    """A header of a member that is said to have more bytes than there are."""
    content = bytearray(tar_of(member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", LABEL)))
    content[124:136] = b"77777777777\0"
    block = content[:148] + b" " * 8 + content[156:512]
    content[148:156] = b"%06o\0 " % sum(block)
    return bytes(content)


def header(kind: bytes, size: bytes, content: bytes = b"") -> bytes:
    """A header of that kind and size, which may be none, and its content."""
    block = bytearray(member("name", b"", kind)[0].tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def pax(content: bytes) -> bytes:
    return header(b"x", b"%011o\0" % len(content), content)


LABEL_MEMBER = member(f"{KEY}.json", LABEL)
GOOD_TAR = tar_of(member(f"{KEY}.flac", FLAC), LABEL_MEMBER)
LABEL_END = b', "speaker": "", "language": ""}'
HOSTILE_TARS = {
    "thousands of long names": header(b"L", b"%011o\0" % 512, b"a" * 512) * 3000 + GOOD_TAR,
    "thousands of long links": header(b"K", b"%011o\0" % 0) * 3000 + GOOD_TAR,
    "thousands of pax headers": pax(b"6 a=b\n") * 3000 + GOOD_TAR,
    "thousands of global pax headers": header(b"g", b"%011o\0" % 6, b"6 a=b\n") * 3000 + GOOD_TAR,
    "a long name of 2^80": header(b"L", b"\x80" + (2**80).to_bytes(11, "big")) + GOOD_TAR,
    "a pax header of 2^80": header(b"x", b"\x80" + (2**80).to_bytes(11, "big")) + GOOD_TAR,
    "a pax header of less than nothing": header(b"x", b"\xff" * 12) + GOOD_TAR,
    "a pax header of 200,000 digits": pax(b"1" * 200_000) + GOOD_TAR,
    "a pax header of digits": pax(b"1" * 10_000) + GOOD_TAR,
    "a pax record of 10^4000 bytes": pax(b"9" * 4000 + b" a=b\n") + GOOD_TAR,
    "a pax record of no bytes": pax(b"0 a=b\n") + GOOD_TAR,
    "a pax size": pax(b"19 size=9999999999\n") + GOOD_TAR,
    "a pax map of holes": pax(b"22 GNU.sparse.map=0,1\n") + GOOD_TAR,
    "a pax name in no UTF-8": pax(b"9 path=\xff\n") + GOOD_TAR,
    "half of a surrogate pair": tar_of(
        member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b'{"text": "\\ud800"' + LABEL_END)
    ),
    "a label of 3 MB": tar_of(
        member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b'{"x": [' + b"[]," * 2**20 + b'1], "text": ""' + LABEL_END)
    ),
    "gzip": gzip.compress(tar_of(member(f"{KEY}.flac", bytes(600 * 2**20 // 4)), LABEL_MEMBER)),
    "sparse": tar_of(sparse_member(f"{KEY}.flac", 2**30), LABEL_MEMBER),
    "sparse label": tar_of(member(f"{KEY}.flac", FLAC), sparse_member(f"{KEY}.json", 2**30)),
    "symbolic link": tar_of(member(f"{KEY}.flac", b"", tarfile.SYMTYPE), LABEL_MEMBER),
    "hard link": tar_of(LABEL_MEMBER, member(f"{KEY}.flac", b"", tarfile.LNKTYPE)),
    "device": tar_of(member(f"{KEY}.flac", b"", tarfile.CHRTYPE), LABEL_MEMBER),
    "three members": tar_of(member(f"{KEY}.flac", FLAC), LABEL_MEMBER, member("x", b"")),
    "the same member twice": tar_of(*[member(f"{KEY}.flac", FLAC)] * 2),
    "many members": tar_of(*[member(f"{number}.flac", b"") for number in range(10_000)]),
    "a size beyond the range": long_pax_header(),
    "a deep label": tar_of(member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b'{"text":' + b"[" * 200_000)),
    "a long number": tar_of(member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b'{"text":' + b"7" * 5_000 + b"}")),
    "a label of another kind": tar_of(member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b"[]")),
    "a text that is a number": tar_of(member(f"{KEY}.flac", FLAC), member(f"{KEY}.json", b'{"text": 3}')),
    "an hour of silence": tar_of(member(f"{KEY}.flac", flac_of(3600 * RATE_HZ)), LABEL_MEMBER),
    # The number of samples is in bits 108 to 143 of STREAMINFO, after the eight bytes of its own header.
    "a header of 2^36 samples": tar_of(
        member(f"{KEY}.flac", FLAC[:21] + bytes([FLAC[21] | 0x0F]) + b"\xff" * 4 + FLAC[26:]), LABEL_MEMBER
    ),
    "no FLAC": tar_of(member(f"{KEY}.flac", b"RIFF" * 20), LABEL_MEMBER),
    "nothing": bytes(10240),
}
IMPORTS = """
import sys
from pathlib import Path
from data.shards.index import read_index
from data.shards.reader import *
"""

READ_ALL = """
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        ShardReader(read_index(folder)).read(0)
    except UtteranceError as error:
        assert error.key == "u0", error
        print(folder.name)
"""


def test_hostile_tars_are_broken_utterances_with_their_key_in_little_memory(tmp_path: Path) -> None:
    for name, content in HOSTILE_TARS.items():
        write_hostile_split(tmp_path / name, content)
    assert run_limited(IMPORTS, READ_ALL, tmp_path).splitlines() == sorted(HOSTILE_TARS)


@pytest.mark.parametrize("key", ["k" * 150, "ключ" * 20, "k" * 99])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_of_other_letters_are_read_in_either_format(key: str, tar_format: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for name, content in ((f"{key}.flac", FLAC), (f"{key}.json", LABEL)):
            info, _ = member(name, content)
            # As float it makes a header of pax that gives no name.
            info.mtime = 1.5
            tar.addfile(info, io.BytesIO(content))
    assert read_members(stream.getvalue(), 2) == {f"{key}.flac": FLAC, f"{key}.json": LABEL}


def test_an_index_that_claims_what_no_utterance_has_gives_a_broken_utterance(tmp_path: Path) -> None:
    good = tar_of(member(f"{KEY}.flac", FLAC), LABEL_MEMBER)
    assert ShardReader(read_index(write_hostile_split(tmp_path / "good", good))).read(0).key == KEY
    reader = ShardReader(read_index(write_hostile_split(tmp_path / "long", good, samples=2**36)))
    with pytest.raises(UtteranceError, match=r"68719476736 samples, and an utterance has at most"):
        reader.read(0)


def test_a_remote_range_of_a_terabyte_is_not_asked_for(tmp_path: Path) -> None:
    good = tar_of(member(f"{KEY}.flac", FLAC), LABEL_MEMBER)
    folder = write_hostile_split(tmp_path / "train", good, bytes=2**40)
    with np.load(folder / "index.npz") as stored:
        columns = dict(stored) | {"size": np.array([2**40])}
    np.savez(folder / "index.npz", **columns)
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/train", recursive=True)
    try:
        with pytest.raises(UtteranceError, match="800 samples take 3148928 at most"):
            ShardReader(read_index("memory://bucket/train")).read(0)
    finally:
        files.rm("/bucket", recursive=True)


GIGABYTE = 2**30
READ_GIGABYTES = """
for folder in sorted(Path(sys.argv[1]).iterdir()):
    index = read_index(folder)
    try:
        ShardReader(index).read(0)
    except UtteranceError as error:
        assert "samples take" in str(error), error
        print(folder.name)
"""


def write_large_split(folder: Path, head: bytes, repeated: bytes) -> None:
    """A split whose only utterance is a gigabyte: a head, and members over and over or a hole in the file."""
    write_hostile_split(folder, head, bytes=GIGABYTE)
    with (folder / "shard-000000.tar").open("r+b") as file:
        file.seek(len(head))
        for _ in range(0, 2**24, max(1, len(repeated))):
            if not repeated:
                break
            file.write(repeated)
        file.truncate(GIGABYTE)
    with np.load(folder / "index.npz") as stored:
        columns = dict(stored) | {"size": np.array([GIGABYTE])}
    np.savez(folder / "index.npz", **columns)


def test_a_gigabyte_that_is_not_announced_as_audio_is_not_read(tmp_path: Path) -> None:
    """Not one byte of it: several threads would hold as many gigabytes at once."""
    write_large_split(tmp_path / "a hole", GOOD_TAR, b"")
    million = tar_of(*[member(f"{number}.flac", b"") for number in range(1000)])[: 1000 * 512]
    write_large_split(tmp_path / "millions of members", b"", million)
    write_large_split(tmp_path / "an endless name", header(b"L", b"%011o\0" % (GIGABYTE - 1024)), b"a" * 2**16)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert run_limited(IMPORTS, READ_GIGABYTES, tmp_path).splitlines() == names


@pytest.mark.parametrize("key", ["../../escaped", "/tmp/chorus-escaped", "a/../../../escaped", "C:\\escaped"])
def test_a_member_whose_name_leads_elsewhere_is_read_and_nothing_is_written(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "deep" / "deeper" / "train"
    write_hostile_split(folder, tar_of(member(f"{key}.flac", flac_of(800)), member(f"{key}.json", LABEL)))
    before = sorted(tmp_path.rglob("*"))
    assert ShardReader(read_index(folder)).read(0).key == key
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/chorus-escaped.flac").exists()


# --- indexes ------------------------------------------------------------------------------------------


def npy_of(shape: str, kind: str = "<i8", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def npz_of(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("shard.npy", content)
    return stream.getvalue()


HOSTILE_ARRAYS = {
    "a shape of 10^12": npz_of(npy_of("(1000000000000,)")),
    "a shape of 10^30": npz_of(npy_of(f"({10**30},)")),
    "a shape of many numbers": npz_of(npy_of("(" + "9999, " * 60 + ")")),
    "a negative shape": npz_of(npy_of("(-1, -8)", content=bytes(64))),
    "nothing by 10^30": npz_of(npy_of(f"(0, {10**30})")),
    "Python objects": npz_of(npy_of("(1,)", "|O", b"cos\nsystem\n(S'true'\ntR.")),
    "a header that nests": npz_of(npy_of("(" * 5000)),
    "a header of many minus": npz_of(npy_of("-" * 9000 + "1")),
    "a header that is no mapping": npz_of(b"\x93NUMPY\x01\x00\x02\x0013"),
    "version 9": npz_of(b"\x93NUMPY\x09\x00\x02\x0013"),
    "compressed zeros": npz_of(npy_of("(80000000,)", content=bytes(640_000_000)), zipfile.ZIP_DEFLATED),
    "empty": b"",
    "no archive": b"PK" * 50,
}


@pytest.fixture(scope="module")
def hostile_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    for name, content in HOSTILE_ARRAYS.items():
        (folder / name).write_bytes(content)
    return folder


def test_hostile_arrays_are_refused_in_little_memory(hostile_arrays: Path) -> None:
    code = """
for path in sorted(Path(sys.argv[1]).iterdir()):
    with path.open("rb") as file:
        try:
            load_arrays(file)
        except ValueError:
            print(path.name)
"""
    imports = "import sys\nfrom pathlib import Path\nfrom data.npz import load_arrays\n"
    assert run_limited(imports, code, hostile_arrays).splitlines() == sorted(HOSTILE_ARRAYS)


def test_members_that_share_their_bytes_are_refused() -> None:
    # Each entry of the directory points to the same megabyte.
    content = npz_of(npy_of("(131072,)", content=bytes(2**20)))
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[start:end]
    number = 1000
    ending = b"PK\x05\x06\0\0\0\0" + number.to_bytes(2, "little") * 2
    ending += (len(entry) * number).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"
    with pytest.raises(ValueError, match="longer than the archive"):
        load_arrays(io.BytesIO(content[:start] + entry * number + ending))


@pytest.mark.parametrize("name", sorted(HOSTILE_ARRAYS))
def test_a_hostile_index_is_one_clear_error(tmp_path: Path, hostile_arrays: Path, name: str) -> None:
    folder = write_hostile_split(tmp_path / "train", tar_of(LABEL_MEMBER))
    (folder / "index.npz").write_bytes((hostile_arrays / name).read_bytes())
    with pytest.raises(DataError, match="its index cannot be read") as refusal:
        read_index(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "column",
    [
        np.zeros(1),
        np.zeros((1, 1), np.int64),
        np.zeros(2, np.int64),
        np.array(["1"]),
        np.array([2**63], np.uint64),
        np.array([-1]),
        np.array([2**62]),
    ],
)
@pytest.mark.parametrize("name", ["offset", "size", "samples", "text_length", "shard"])
def test_columns_of_other_numbers_are_refused(tmp_path: Path, column: np.ndarray, name: str) -> None:
    folder = write_hostile_split(tmp_path / "train", tar_of(LABEL_MEMBER))
    with np.load(folder / "index.npz") as stored:
        columns = dict(stored) | {name: column}
    np.savez(folder / "index.npz", **columns)
    if name == "samples" and column.tolist() == [2**62]:
        # Of one utterance: it is named and counted when it is read.
        read_index(folder)
        return
    with pytest.raises(DataError, match="not whole"):
        read_index(folder)


HOSTILE_SUMMARIES = {
    "deep": "[" * 200_000,
    "deep mappings": '{"format":' * 100_000,
    "a long number": '{"format": ' + "1" * 5000 + "}",
    "a long number of utterances": '{"format": 1, "sample_rate_hz": 8, "shards": [{"utterances": ' + "1" * 4000,
    "another encoding": "{}".encode("utf-16").decode("latin1"),
    "no mapping": "[1]",
    "rows of rejected": '{"format": 1, "sample_rate_hz": 8, "shards": [], "rejected": [3]}',
    "a negative rate": '{"format": 1, "sample_rate_hz": -8, "shards": [], "rejected": []}',
    "a rate in words": '{"format": 1, "sample_rate_hz": "8", "shards": [], "rejected": []}',
    "a truth value": '{"format": 1, "sample_rate_hz": true, "shards": [], "rejected": []}',
}


@pytest.mark.parametrize("name", sorted(HOSTILE_SUMMARIES))
def test_a_hostile_summary_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "shards.json").write_text(HOSTILE_SUMMARIES[name], "latin1")
    with pytest.raises(DataError) as refusal:
        read_summary(tmp_path)
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        {"utterances": 10**12},
        {"utterances": -1},
        {"utterances": 1.0},
        {"utterances": "1"},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"bytes": 2**70},
        {"bytes": -1},
        {"sha256": 3},
        {"sha256": None},
    ],
)
def test_numbers_that_no_shard_has_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_hostile_split(tmp_path / "train", tar_of(LABEL_MEMBER), **change)
    with pytest.raises(DataError, match=rf"shards\.json has, at shards\.0\.{next(iter(change))}"):
        read_index(folder)


@pytest.mark.parametrize(
    "line", [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"key": "a"}\n', b"[" * 200_000 + b"\n", b'"' + b"a" * 2**21]
)
def test_transcripts_of_strangers_are_one_clear_error_and_an_utterance_without_them_still_has_a_name(
    tmp_path: Path, line: bytes
) -> None:
    folder = write_hostile_split(tmp_path / "train", bytes(10240))
    (folder / "transcripts.jsonl").write_bytes(line)
    index = read_index(folder)
    with pytest.raises(DataError, match=r"transcripts\.jsonl"):
        list(index.rows())
    with pytest.raises(UtteranceError, match="Utterance number 0 at offset 0 of "):
        ShardReader(index).read(0)


def test_a_pipe_or_a_device_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_hostile_split(tmp_path / "train", tar_of(LABEL_MEMBER))
    for name in ("transcripts.jsonl", "index.npz", "shards.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(DataError, match="no regular file"):
            list(read_index(folder).rows())
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(DataError, match="no regular file"):
            list(read_index(folder).rows())


# --- names --------------------------------------------------------------------------------------------

FOREIGN_NAMES = ["", ".", "..", "../x.tar", "/x.tar", "/../../x.tar", "a/b.tar", "a\\b.tar", ".x.tar", "a\0.tar"]
FOREIGN_NAMES += ["a\n.tar", "a.tar\n", "-x.tar", "$(x).tar", "a b.tar", "x::file:", "x?y", "x%2fy", "é.tar", "a" * 201]


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_shard_name_that_leads_elsewhere_is_refused_locally_and_behind_a_url(tmp_path: Path, name: str) -> None:
    folder = write_hostile_split(tmp_path / "train", tar_of(LABEL_MEMBER), name=name)
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/train", recursive=True)
    try:
        for place in (folder, "memory://bucket/train"):
            with pytest.raises(DataError, match="is no file name of a shard"):
                read_index(place)
    finally:
        files.rm("/bucket", recursive=True)


def test_the_names_that_are_written_are_names_that_are_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, RATE_HZ), RATE_HZ)
    utterances = [Utterance(KEY, (Clip(tmp_path / "a.wav"),), "one", "train")]
    write_split(utterances, tmp_path / "train", sample_rate_hz=RATE_HZ, shard_seconds=1, seed=1)
    assert all(is_file_name(path.name) for path in (tmp_path / "train").iterdir())
    assert ShardReader(read_index(tmp_path / "train")).read(0).text == "one"


@pytest.mark.parametrize(
    "url",
    [
        "reference::memory://bucket",
        "reference://bucket",
        "simplecache::s3://bucket/train",
        "filecache::http://host/train",
        "zip://x::http://host/a.zip",
        "github://org:repo@/train",
        "jupyter://host/train",
        "dask://worker/train",
        "local://etc",
        "http://host/train::file://etc",
        "HTTP://host/train",
        "://x",
    ],
)
def test_urls_that_open_other_files_than_they_name_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="Shards are not read from"):
        read_summary(url)


# --- cost ---------------------------------------------------------------------------------------------


def test_a_lost_shard_of_thousands_reads_the_transcripts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bytes of transcripts.jsonl that are read <= its size + the lines of the broken utterances."""
    number = 2000
    folder = write_hostile_split(tmp_path / "train", bytes(10240), utterances=number)
    columns = {name: np.zeros(number, kind) for name, kind in INDEX_COLUMNS.items()}
    np.savez(folder / "index.npz", **(columns | {"size": np.full(number, 512)}))
    lines = [json.dumps({"key": f"k{row}", "text": "é", "speaker": "", "language": ""}) for row in range(number)]
    transcripts = folder / "transcripts.jsonl"
    transcripts.write_text("\n".join(lines) + "\n")
    index = read_index(folder)
    (folder / "shard-000000.tar").unlink()

    reader = ShardReader(index)
    num_bytes = 0
    scans = []
    read = reader._transcripts.read
    starts = type(index).line_starts

    def counting_read(name: str, offset: int, size: int) -> bytes:
        nonlocal num_bytes
        num_bytes += size
        return read(name, offset, size)

    monkeypatch.setattr(reader._transcripts, "read", counting_read)
    monkeypatch.setattr(type(index), "line_starts", lambda index: scans.append(1) or starts(index))
    for utterance in (*range(number - 1, -1, -7), 0):
        with pytest.raises(UtteranceError, match="its shard is not there") as caught:
            reader.read(utterance)
        assert caught.value.key == f"k{utterance}"
    assert len(scans) == 1
    assert num_bytes <= transcripts.stat().st_size


@pytest.mark.parametrize("read", [parse_json, read_json])
def test_bytes_that_are_no_text_are_not_part_of_the_message_about_them(tmp_path: Path, read: Any) -> None:
    content = b'{"a": "' + b"\xff" * 2**20 + b'"}'
    given: Any = content
    if read is read_json:
        given = tmp_path / "a.json"
        given.write_bytes(content)
    with pytest.raises(ValueError, match="byte 7 of 1048585 is no UTF-8") as refused:
        read(given)
    assert len(repr(refused.value)) < 200
