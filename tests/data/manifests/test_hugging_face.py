"""Hugging Face's datasets, written by that library itself: folders of audio, Parquet files, saved data sets."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Utterance, read_audio
from data.containers.members import Cell, Member
from data.corpora.folder import FolderConfig
from data.corpora.prepare import prepare
from data.errors import DataError
from data.manifests.manifest import manifest_files, read_manifest

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RATE_HZ = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, (6, RATE_HZ)).astype(np.float32)


def wav(number: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, NOISE[number], RATE_HZ, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def expected(number: int) -> np.ndarray:
    samples, _ = soundfile.read(io.BytesIO(wav(number)), dtype="float32")
    return samples


def data_set(count: int = 6):
    rows = {
        "audio": [{"bytes": wav(number), "path": f"{number}.wav"} for number in range(count)],
        "text": [f"text {number}" for number in range(count)],
        "speaker_id": list(range(count)),
        "language": [0, 1] * (count // 2),
        # Of the session that the clip was cut from.
        "begin_time": [100.0 + number for number in range(count)],
        "end_time": [101.0 + number for number in range(count)],
    }
    features = {
        "audio": datasets.Audio(sampling_rate=RATE_HZ),
        "text": datasets.Value("string"),
        "speaker_id": datasets.Value("int64"),
        "language": datasets.ClassLabel(names=["en", "de"]),
        "begin_time": datasets.Value("float64"),
        "end_time": datasets.Value("float64"),
    }
    return datasets.Dataset.from_dict(rows).cast(datasets.Features(features))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set in every form, by the name of the folder."""
    root = tmp_path_factory.mktemp("hf")
    whole = data_set()
    whole.save_to_disk(root / "saved")
    whole.to_parquet(root / "one.parquet", batch_size=2)
    halves = datasets.DatasetDict(train=whole.select(range(4)), validation=whole.select(range(4, 6)))
    halves.save_to_disk(root / "saved_dict", num_shards={"train": 2, "validation": 1})
    for name in ("hub/data", "converted/train", "converted/test"):
        (root / name).mkdir(parents=True)
    halves["train"].to_parquet(root / "hub/data/train.clean.100-00000-of-00001-0123456789abcdef.parquet")
    halves["validation"].to_parquet(root / "hub/data/validation-00000-of-00001.parquet")
    halves["train"].to_parquet(root / "converted/train/0000.parquet")
    halves["validation"].to_parquet(root / "converted/test/0000.parquet")
    return root


def read(path: Path) -> tuple[list[Utterance], list[str]]:
    utterances, rejected = read_manifest(path)
    return utterances, [row.reason for row in rejected]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("saved", [""] * 6),
        ("saved/data-00000-of-00001.arrow", [""] * 6),
        ("saved_dict", ["train"] * 4 + ["validation"] * 2),
        ("one.parquet", [""] * 6),
        ("hub", ["train-clean-100"] * 4 + ["validation"] * 2),
        ("converted", ["test"] * 2 + ["train"] * 4),
    ],
)
def test_every_form_gives_the_rows_with_their_recordings(places: Path, name: str, splits: list[str]) -> None:
    utterances, reasons = read(places / name)
    assert reasons == []
    assert [row.split for row in utterances] == splits
    assert {row.text: (row.speaker, row.language, row.key) for row in utterances} == {
        f"text {number}": (str(number), ["en", "de"][number % 2], str(number)) for number in range(6)
    }
    for row in utterances:
        np.testing.assert_array_equal(read_audio(row, RATE_HZ), expected(int(row.speaker)))


def test_recordings_of_parquet_are_read_by_their_group_and_of_arrow_where_they_lie(places: Path) -> None:
    cells = [row.clips[0].member for row in read(places / "one.parquet")[0]]
    assert [(cell.row_group, cell.row) for cell in cells if isinstance(cell, Cell)] == [
        (group, row) for group in range(3) for row in range(2)
    ]
    content = (places / "saved" / "data-00000-of-00001.arrow").read_bytes()
    for number, row in enumerate(read(places / "saved")[0]):
        member = row.clips[0].member
        assert isinstance(member, Member)
        assert content[member.start : member.start + member.num_bytes] == wav(number)


@pytest.mark.parametrize("name", ["one.parquet", "saved"])
def test_shards_of_tables_are_the_same_for_any_number_of_jobs_and_are_finished(
    places: Path, tmp_path: Path, name: str
) -> None:
    config = FolderConfig(manifest=places / name, dev_fraction=0, test_fraction=0)
    reports = [
        prepare(config, tmp_path / str(workers), seed=1, sample_rate_hz=RATE_HZ, workers=workers) for workers in (1, 3)
    ]
    assert reports[0].used == 6
    assert reports[0].fingerprint == reports[1].fingerprint
    assert sorted(path.name for path in (tmp_path / "1" / "train").iterdir()) == [
        *("index.npz", "shard-000000.tar", "shards.json", "sources.jsonl", "transcripts.jsonl"),
    ]
    assert prepare(config, tmp_path / "1", seed=1, sample_rate_hz=RATE_HZ).kept == ("train",)


def test_an_embedded_recording_that_is_broken_is_rejected_by_its_name_and_table(tmp_path: Path) -> None:
    rows = {
        "audio": [{"bytes": wav(0), "path": "a.wav"}, {"bytes": wav(1)[:100], "path": "b.wav"}, None],
        "text": ["a", "b", "c"],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path / "saved")
    for place, last in ((tmp_path / "t.parquet", "holds no samples"), (tmp_path / "saved", "it names no audio file")):
        report = prepare(
            FolderConfig(manifest=place, dev_fraction=0, test_fraction=0),
            tmp_path / f"out-{place.name}",
            seed=1,
            sample_rate_hz=RATE_HZ,
        )
        assert report.used == 1
        reasons = sorted(row.reason for row in report.rejected)
        assert any(f"b.wav in {tmp_path}" in reason and "breaks off" in reason for reason in reasons)
        assert any(last in reason for reason in reasons)
        assert not any("cells.bin" in reason or "chorus-" in reason for reason in reasons)


def test_a_table_of_paths_names_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    for number in range(2):
        (tmp_path / "clips" / f"{number}.wav").write_bytes(wav(number))
    names = [f"clips/{number}.wav" for number in range(2)]
    # The library looks for the files from where it runs.
    monkeypatch.chdir(tmp_path)
    columns = {"audio": [{"bytes": None, "path": name} for name in names], "text": ["a", "b"]}
    datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio()).to_parquet(tmp_path / "struct.parquet")
    datasets.Dataset.from_dict({"path": names, "sentence": ["a", "b"]}).to_parquet(tmp_path / "names.parquet")
    for name in ("struct.parquet", "names.parquet"):
        utterances, reasons = read(tmp_path / name)
        assert reasons == []
        assert [row.clips[0].member for row in utterances] == [None, None]
        np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), expected(1))


def test_audio_folders_are_read_in_folders_of_splits_and_with_one_table_above_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "deep" / split).mkdir(parents=True)
        (tmp_path / "flat" / split).mkdir(parents=True)
        (tmp_path / "deep" / split / "0.wav").write_bytes(wav(0))
        (tmp_path / "flat" / split / "0.wav").write_bytes(wav(0))
    (tmp_path / "deep/train/metadata.csv").write_text("file_name,transcription\n0.wav,hello\n")
    (tmp_path / "deep/test/metadata.jsonl").write_text('{"file_name": "0.wav", "text": "there"}\n')
    (tmp_path / "flat/metadata.csv").write_text("file_name,text\ntrain/0.wav,hello\ntest/0.wav,there\nno.wav,x\n")
    for name in ("deep", "flat"):
        utterances, _ = read(tmp_path / name)
        assert sorted((row.split, row.text) for row in utterances) == [("test", "there"), ("train", "hello")]
    _, reasons = read(tmp_path / "flat")
    assert "metadata.csv: there is no audio file" in reasons[0]
    (tmp_path / "deep/test/metadata.jsonl").write_text('{"audio_file_name": "0.wav", "text": "there"}\n')
    assert len(read(tmp_path / "deep")[0]) == 2
    assert [path.name for path in manifest_files(tmp_path / "deep").lists] == ["metadata.jsonl", "metadata.csv"]


def test_a_loading_script_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="loading script is never run"):
        read_manifest(tmp_path / "corpus")
    data_set(2).to_parquet(tmp_path / "corpus" / "train-00000-of-00001.parquet")
    assert len(read(tmp_path / "corpus")[0]) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "a/b.arrow", 3])
def test_a_saved_data_set_that_names_files_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    data_set(2).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="names files outside of its folder"):
        read_manifest(tmp_path / "saved")


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
        (lambda path: parquet.write_table(pyarrow.table({"words": ["a"]}), path), "no column of recordings"),
        (
            lambda path: parquet.write_table(pyarrow.table({"left": [b"a"], "right": [b"b"]}), path),
            r"in several columns \(left, right\)",
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, make, seen: str) -> None:
    make(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=seen):
        read_manifest(tmp_path / "t.parquet")


def test_a_compressed_arrow_file_is_refused_and_a_file_with_a_footer_is_read(tmp_path: Path) -> None:
    table = pyarrow.table({"audio": [wav(0)] * 2, "text": ["a", "b"]})
    for name, codec in (("plain", None), ("small", "zstd")):
        options = pyarrow.ipc.IpcWriteOptions(compression=codec)
        with pyarrow.ipc.new_file(tmp_path / f"{name}.arrow", table.schema, options=options) as writer:
            writer.write_table(table)
    utterances, _ = read(tmp_path / "plain.arrow")
    np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), expected(0))
    with pytest.raises(DataError, match="is compressed"):
        read_manifest(tmp_path / "small.arrow")


def test_without_pyarrow_one_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(2).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'chorus-asr\[arrow\]'"):
        read_manifest(tmp_path / "t.parquet")
