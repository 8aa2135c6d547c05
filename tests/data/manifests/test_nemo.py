"""NeMo's manifests: plain ones, and tarred sets in the layout of its convert_to_tarred_audio_dataset.py."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Clip, Utterance, read_audio
from data.manifests.manifest import manifest_files, read_manifest

RATE_HZ = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, (4, 2 * RATE_HZ)).astype(np.float32)


def flac(number: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, NOISE[number], RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def write_set(folder: Path, *shards: list[dict], sharded: bool = True, single: bool = True) -> Path:
    """A tarred data set: of each shard its tar, with a member per row, and its rows in both kinds of manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    for number, shard in enumerate(shards):
        lines = [json.dumps({**row, "shard_id": number}) for row in shard]
        rows += lines
        with tarfile.open(folder / f"audio_{number}.tar", "w") as tar:
            for position, name in enumerate(dict.fromkeys(row["audio_filepath"] for row in shard)):
                if "-sub" not in name:
                    info = tarfile.TarInfo(name)
                    info.size = len(flac(position))
                    tar.addfile(info, io.BytesIO(flac(position)))
        if sharded:
            (folder / "sharded_manifests").mkdir(exist_ok=True)
            (folder / "sharded_manifests" / f"manifest_{number}.json").write_text("\n".join(lines) + "\n")
    if single:
        (folder / "tarred_audio_manifest.json").write_text("\n".join(rows) + "\n")
    return folder


def row_of(name: str, text: str, **fields) -> dict:
    return {"audio_filepath": name, "duration": 2.0, "text": text, **fields}


def read(path: Path) -> tuple[list[Utterance], list[str]]:
    utterances, rejected = read_manifest(path)
    return utterances, [row.reason for row in rejected]


def test_a_plain_manifest_is_read_by_offset_and_duration(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE[0], RATE_HZ)
    (tmp_path / "train_manifest.json").write_text(
        '{"audio_filepath": "a.wav", "duration": 2.0, "text": "whole", "lang": "en", "pnc": "no"}\n'
        '{"audio_filepath": "a.wav", "duration": 0.5, "offset": 1.25, "text": "part", "speaker": "s", "label": "x"}\n'
    )
    utterances, reasons = read(tmp_path / "train_manifest.json")
    assert reasons == []
    assert [(row.text, row.clips[0], row.speaker, row.language) for row in utterances] == [
        ("whole", Clip(tmp_path / "a.wav", 0.0, 2.0), "", "en"),
        ("part", Clip(tmp_path / "a.wav", 1.25, 0.5), "s", ""),
    ]


@pytest.mark.parametrize(("sharded", "single"), [(True, True), (True, False), (False, True)])
def test_tarred_sets_are_read_with_either_kind_of_manifest(tmp_path: Path, sharded: bool, single: bool) -> None:
    # As slice_with_offset writes it: the offset in the file that it was cut from is kept for the record.
    first = [row_of("a_0_0_2_0.flac", "one", source_audio_offset=31.5), row_of("b.flac", "two", lang="de")]
    folder = write_set(tmp_path / "set", first, [row_of("c.flac", "three")], sharded=sharded, single=single)
    places = [folder]
    if single:
        places.append(folder / "tarred_audio_manifest.json")
    for place in places:
        utterances, reasons = read(place)
        assert reasons == []
        assert [(row.text, row.language) for row in utterances] == [("one", ""), ("two", "de"), ("three", "")]
        samples, _ = soundfile.read(io.BytesIO(flac(1)), dtype="float32")
        np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), samples)
    assert len(manifest_files(folder).containers) == 2


def test_parts_of_one_member_are_read_by_their_offsets(tmp_path: Path) -> None:
    rows = [
        row_of("a.flac", "first", offset=0.0, duration=0.5),
        row_of("a-sub1.flac", "second", offset=0.5, duration=1.25),
    ]
    utterances, reasons = read(write_set(tmp_path, rows))
    assert reasons == []
    samples, _ = soundfile.read(io.BytesIO(flac(0)), dtype="float32")
    np.testing.assert_array_equal(read_audio(utterances[0], RATE_HZ), samples[:8000])
    np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), samples[8000:28000])


def test_folders_are_splits_unless_they_are_buckets(tmp_path: Path) -> None:
    for name in ("bucket1", "bucket2"):
        write_set(tmp_path / "buckets" / name, [row_of(f"{name}.flac", "a")])
    for name in ("dev", "train"):
        write_set(tmp_path / "splits" / name, [row_of(f"{name}.flac", "a")])
    assert [row.split for row in read(tmp_path / "buckets")[0]] == ["", ""]
    assert [row.split for row in read(tmp_path / "splits")[0]] == ["dev", "train"]


def test_rows_of_another_tar_or_of_none_are_rejected(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [row_of("a.flac", "one")], [row_of("b.flac", "two")], sharded=False)
    rows = [
        {**row_of("a.flac", "x"), "shard_id": 1},
        {**row_of("a.flac", "x"), "shard_id": 9},
        {**row_of("a.flac", "x"), "shard_id": "0"},
        row_of("a.flac", "x"),
        {"shard_id": 0, "text": "x"},
        {**row_of("a.flac", "used"), "shard_id": 0},
    ]
    (folder / "tarred_audio_manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    utterances, reasons = read(folder)
    assert [row.text for row in utterances] == ["used"]
    for reason, seen in zip(
        reasons,
        ["is not in audio_1.tar", "of no audio_N", "of no audio_N", "of no audio_N", "'None' is not in"],
        strict=True,
    ):
        assert seen in reason
