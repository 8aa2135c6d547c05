"""Tars and tables from strangers, given as a corpus: nothing is written, unpickled or run, and memory stays bounded."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from limits import run_limited

from data.audio import read_audio
from data.containers.parquet_cells import read_cells, rows_at_once
from data.containers.tar_members import list_members
from data.corpora.folder import FolderConfig
from data.corpora.prepare import prepare
from data.errors import DataError
from data.manifests.manifest import read_manifest

RATE_HZ = 16000
READ = """
import sys
from pathlib import Path
from data.errors import DataError
from data.manifests.manifest import read_manifest
"""
REPORT = """
try:
    utterances, rejected = read_manifest(Path(sys.argv[1]))
    print(len(utterances), "used")
    print(*sorted({row.reason for row in rejected}), sep="\\n")
except DataError as error:
    print(error)
"""


def flac(seconds: float = 0.5) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE_HZ))
    soundfile.write(stream, noise, RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


FLAC = flac()


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "hostile",
    [
        member("../u.flac", FLAC),
        member("/etc/u.flac", FLAC),
        member("a/../../u.flac", FLAC),
        member("u.flac", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("u.flac", type=tarfile.LNKTYPE, linkname="good.flac"),
        member("u.flac", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("u.flac", type=tarfile.FIFOTYPE),
        member("u.flac", type=tarfile.GNUTYPE_SPARSE),
    ],
)
def test_members_that_are_no_plain_files_of_the_tar_are_rejected_by_name(tmp_path: Path, hostile) -> None:
    tar = write_tar(
        tmp_path / "train-0.tar", member("good.flac", FLAC), member("good.txt", b"a"), hostile, member("u.txt", b"b")
    )
    report = prepare(FolderConfig(manifest=tar), tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ)
    assert report.used == 1
    assert any("leads out of its folder" in row.reason or "not a plain file" in row.reason for row in report.rejected)
    assert {path.name for path in tmp_path.iterdir()} == {"train-0.tar", "out"}


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Opened:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    content = pickle.dumps(Opened())
    parts = [member(f"u.{ending}", content) for ending in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "cls")]
    tar = write_tar(tmp_path / "train-0.tar", member("u.flac", FLAC), member("u.txt", b"a"), *parts)
    assert prepare(FolderConfig(manifest=tar), tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ).used == 1
    assert not (tmp_path / "ran").exists()


def test_a_member_that_claims_more_bytes_than_the_tar_has_ends_the_tar_and_no_more(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "train-0.tar", member("a.flac", FLAC), member("a.txt", b"a"))
    huge = tarfile.TarInfo("b.flac")
    huge.size = 2**40
    content = tar.read_bytes().rstrip(b"\0")
    padded = content + b"\0" * (-len(content) % 512)
    tar.write_bytes(padded + huge.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
    report = prepare(FolderConfig(manifest=tar), tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ)
    assert report.used == 1
    assert "is said to have 1099511627776 bytes" in report.rejected[0].reason


@pytest.mark.parametrize("kind", ["pax", "gnu", "nested"])
def test_headers_about_the_next_header_are_bounded(tmp_path: Path, kind: str) -> None:
    if kind == "nested":
        header = tarfile.TarInfo("././@LongLink")
        header.type = tarfile.GNUTYPE_LONGNAME
        (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) * 10_000 + b"\0" * 1024)
    else:
        info = member("x" * 2**20, b"a")
        write_tar(tmp_path / "a.tar", info, kind=tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT)
    problems: list[str] = []
    try:
        problems += [listed.problem for listed in list_members(tmp_path / "a.tar")]
    except ValueError as error:
        problems.append(str(error))
    assert all(problems)


def test_many_members_and_large_texts_stay_within_memory(tmp_path: Path) -> None:
    # Headers alone, of which each could be an utterance; and texts that together are larger than the limit.
    header = tarfile.TarInfo("u.txt").tobuf(tarfile.GNU_FORMAT)
    blocks = header * 50_000
    big = member("v.json", json.dumps({"text": "x" * 2**21}).encode())
    write_tar(tmp_path / "train-0.tar", member("a.flac", FLAC), member("a.txt", b"a"), big, member("v.flac", FLAC))
    (tmp_path / "train-1.tar").write_bytes(blocks + b"\0" * 1024)
    seen = run_limited(READ, REPORT, tmp_path)
    assert seen.startswith("1 used")
    assert "more than the 1048576 of a text" in seen


def test_a_flac_that_claims_days_inside_of_a_tar_is_refused_as_a_file_is(tmp_path: Path) -> None:
    content = bytearray(FLAC)
    # The number of samples, 36 bits that end at byte 26 of the first block.
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    tar = write_tar(tmp_path / "train-0.tar", member("a.flac", bytes(content)), member("a.txt", b"a"))
    utterances, _ = read_manifest(tar)
    with pytest.raises(DataError, match=r"a\.flac in .*train-0\.tar breaks off"):
        read_audio(utterances[0], RATE_HZ)


def test_deep_json_beside_a_recording_is_a_rejected_row(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", member("a.flac", FLAC), member("a.json", b"[" * 500_000))
    _, rejected = read_manifest(tar)
    assert "not JSON" in rejected[0].reason


def test_a_named_pipe_in_the_place_of_a_tar_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.tar")
    _, rejected = read_manifest(tmp_path)
    assert "no regular file" in rejected[0].reason


def test_a_parquet_cell_of_gigabytes_is_refused_within_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # One text that a dictionary repeats: some kilobytes become gigabytes where every row has its own.
    table = pyarrow.table({"audio": [FLAC] * 1024, "text": ["x" * 2**20] * 1024})
    parquet.write_table(table, tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 2**21
    # The allocator that pyarrow has by default reserves a gigabyte of addresses.
    imports = 'import os\nos.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"\nimport pyarrow.parquet\n' + READ
    seen = run_limited(imports, REPORT, tmp_path / "t.parquet", memory_bytes=512 * 2**20)
    assert "holds 1048576 characters, more than 65536" in seen


def test_a_recording_that_a_dictionary_repeats_takes_no_memory_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"audio": [FLAC + bytes(2**23)] * 16, "text": ["a"] * 16})
    path = tmp_path / "t.parquet"
    # In a dictionary page of its own, some kilobytes.
    parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr("data.containers.parquet_cells.MAX_BATCH_BYTES", 2**25)
    group = parquet.read_metadata(path).row_group(0)
    assert rows_at_once(group, ["audio"], 16) == 3
    assert rows_at_once(group, ["text"], 16) == 16
    cells = dict(read_cells(path, 0, "audio", range(16)))
    assert list(cells) == list(range(16))
    assert set(map(len, cells.values())) == {len(FLAC) + 2**23}


def arrow_file(path: Path, layout: str, compression: str | None, is_dictionary: bool) -> None:
    """An Arrow file or stream of a recording, and of one text of 64 MiB, or as the value of a dictionary."""
    pyarrow = pytest.importorskip("pyarrow")
    text = pyarrow.array(["x" * 2**26])
    if is_dictionary:
        text = text.dictionary_encode()
    batch = pyarrow.record_batch([pyarrow.array([FLAC]), text], names=["audio", "text"])
    make = pyarrow.ipc.new_file if layout == "file" else pyarrow.ipc.new_stream
    with make(path, batch.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)


@pytest.mark.parametrize("layout", ["file", "stream"])
def test_a_compressed_arrow_file_is_refused_before_it_is_decompressed(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "t.arrow"
    for compression in ("zstd", "lz4"):
        for is_dictionary in (False, True):
            arrow_file(path, layout, compression, is_dictionary)
            before = pyarrow.total_allocated_bytes()
            with monkeypatch.context() as patch:
                # Whatever opens it would decompress the values of dictionaries at once.
                patch.delattr(pyarrow.ipc, "open_stream")
                with pytest.raises(DataError, match="is compressed"):
                    read_manifest(path)
            assert pyarrow.total_allocated_bytes() - before < 2**20
    arrow_file(path, layout, None, is_dictionary=False)
    _, rejected = read_manifest(path)
    assert "holds 67108864 characters" in rejected[0].reason


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_damaged_table_is_an_error_or_rejected_rows_and_nothing_worse(tmp_path: Path, ending: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"audio": [FLAC] * 20, "text": [f"text {number}" for number in range(20)]})
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for position in generator.integers(0, len(content), 20):
            content[position] = generator.integers(0, 256)
        path.write_bytes(bytes(content[: generator.integers(len(content) // 2, len(content) + 1)]))
        try:
            utterances, _ = read_manifest(path)
        except DataError:
            continue
        for utterance in utterances[:3]:
            try:
                read_audio(utterance, RATE_HZ)
            except DataError:
                continue


HOSTILE_LISTS = {
    "deep": b'{"audios":[' + b"[" * 1_000_000,
    "deep under names": b'{"audios":[' + b'{"a":' * 200_000,
    "a long text": b'{"audios":[{"path":"' + b"a" * 1_000_000 + b'","segments":[]}]}',
    "a recording of very many values": b'{"audios":[{"path":"a","segments":[' + b"1," * 1_000_000 + b"1]}]}",
    "a number of 100,000 digits": b'{"audios":[' + b"1" * 100_000 + b"]}",
    "a number beyond all others": b'{"audios":[1e' + b"9" * 5000 + b"]}",
}


def test_hostile_lists_of_segments_are_one_clear_error_in_little_memory(tmp_path: Path) -> None:
    for name, content in HOSTILE_LISTS.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    code = """
segment_list.MAX_RECORDING_BYTES = 2**19
for path in sorted(Path(sys.argv[1]).iterdir()):
    rows = RowCollector(PublishedCorpusConfig(root=path.parent), "en")
    try:
        list(segment_list.read_segments(path, "text_tn", rows))
    except DataError:
        print(path.stem)
"""
    imports = """
import sys
from pathlib import Path
import ijson
from data.corpora import segment_list
from data.corpora.published import PublishedCorpusConfig, RowCollector
from data.errors import DataError
"""
    refused = run_limited(imports, code, tmp_path).splitlines()
    assert sorted(refused) == sorted(HOSTILE_LISTS)
