"""Precomputed arrays of utterances, in tars beside their shards."""

import logging

import numpy as np
import pytest
import soundfile
import webdataset

from data.audio import Clip, Utterance
from data.errors import DataError
from data.features import FeaturesConfig
from data.loader import Loader, SidecarSource
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.shards.index import ShardIndex, read_index
from data.shards.reader import ShardReader, UtteranceError
from data.shards.sidecars import SidecarWriter, find_broken, open_sidecars
from data.shards.writer import write_split

SPEEDS = (0.9, 1.0)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> ShardIndex:
    """Nine recordings of noise in several shards."""
    folder = tmp_path_factory.mktemp("noise")
    noise = np.random.default_rng(1)
    utterances = []
    for number in range(9):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * noise.standard_normal(8000 + 500 * number), 16000)
        utterances.append(Utterance(f"noise-{number}", (Clip(path),), f"text {number}", "train"))
    write_split(utterances, folder / "train", sample_rate_hz=16000, shard_seconds=2, seed=1)
    return read_index(folder / "train")


def arrays(utterance: int, column: int) -> dict[str, np.ndarray]:
    states = np.random.default_rng(10 * utterance + column).standard_normal((20, 8)).astype(np.float16)
    return {"states": states, "frames": np.array(20, np.int32)}


def write(writer: SidecarWriter, shards: list[int], skipped: int | None = None) -> None:
    """Write some shards, except the sidecars of the utterance `skipped`."""
    keys = list(writer.split.keys())
    for shard in shards:
        utterances = writer.utterances(shard)
        members = {}
        for row, utterance in enumerate(utterances):
            if utterance == skipped:
                continue
            for column in range(len(SPEEDS)):
                members[row, column] = arrays(utterance, column)
        writer.write(shard, keys[utterances.start : utterances.stop], members)


@pytest.fixture
def written(split, tmp_path) -> SidecarWriter:
    writer = SidecarWriter(split, tmp_path / "sidecars", SPEEDS)
    assert writer.missing() == list(range(len(split.names)))
    write(writer, writer.missing())
    writer.finish()
    return writer


def equal(arrays, expected) -> bool:
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[name], expected[name]) for name in arrays)


def test_every_utterance_has_at_every_speed_what_was_written(split, written):
    reader = open_sidecars(written.folder, split)
    for utterance, key in enumerate(split.keys()):
        for column, speed in enumerate(SPEEDS):
            # The sampler's speeds are float32.
            assert equal(reader.read(utterance, float(np.float32(speed)), key), arrays(utterance, column))


def test_webdataset_reads_the_tars_with_the_keys_of_the_shards(split, written):
    samples = []
    for name in split.names:
        samples += webdataset.WebDataset(str(written.folder / name), shardshuffle=False).decode()  # pyright: ignore
    assert [sample["__key__"] for sample in samples] == list(split.keys())
    for utterance, sample in enumerate(samples):
        assert equal(dict(sample["speed-0.9.npz"]), arrays(utterance, 0))
        assert equal(dict(sample["speed-1.npz"]), arrays(utterance, 1))


def test_after_a_kill_the_missing_shards_are_written_and_the_bytes_are_the_same(split, written, tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    first = SidecarWriter(split, folder, SPEEDS)
    write(first, [0, 2])
    (folder / f".{split.names[1]}.1.tmp").write_bytes(b"half of a tar")
    with pytest.raises(DataError, match=rf"it is not finished, 2 of {len(split.names)} shards are written"):
        open_sidecars(folder, split)
    second = SidecarWriter(split, folder, SPEEDS)
    assert second.missing() == [1, *range(3, len(split.names))]
    write(second, second.missing())
    second.finish()
    assert SidecarWriter(split, folder, SPEEDS).missing() == []
    assert bytes_of(folder) == bytes_of(written.folder)


def bytes_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["flipped byte", "zeroed header", "truncated", "missing"])
def test_damage_is_named_with_shard_key_and_offset_and_that_shard_alone_is_written_again(split, written, kind):
    reader = open_sidecars(written.folder, split)
    victim = len(split) - 1
    key = list(split.keys())[victim]
    name = split.names[-1]
    path = written.folder / name
    offset = int(reader.offset[victim, 1])
    size = int(reader.size[victim, 1])
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: offset + 600])
    elif kind == "flipped byte":
        content[offset + size // 2] ^= 0x10
        path.write_bytes(content)
    else:
        content[offset : offset + 512] = bytes(512)
        path.write_bytes(content)
    with pytest.raises(UtteranceError, match=rf"utterance {key} at speed 1, at offset {offset} of .*{name}, is broken"):
        open_quickly(reader).read(victim, 1.0, key)
    assert equal(reader.read(0, 1.0, next(split.keys())), arrays(0, 1))
    last = len(split.names) - 1
    if kind in ("truncated", "missing"):
        with pytest.raises(DataError, match=rf"{name} should have {len(content)} bytes"):
            open_sidecars(written.folder, split)
        assert written.missing() == [last]
    else:
        assert find_broken(reader) == [last]
    times = {name: (written.folder / name).stat().st_mtime_ns for name in split.names[:-1]}
    write(written, [last])
    written.finish()
    assert equal(open_sidecars(written.folder, split).read(victim, 1.0, key), arrays(victim, 1))
    assert times == {name: (written.folder / name).stat().st_mtime_ns for name in times}


def test_arrays_that_were_never_stored_are_a_broken_utterance_with_its_key(split, written):
    def refuse(arrays):
        raise ValueError("it has no number of frames")

    written.finish()
    reader = open_sidecars(written.folder, split)
    key = next(split.keys())
    assert reader.read(0, 1.0, key)
    reader.check = refuse
    with pytest.raises(UtteranceError, match="it has no number of frames") as raised:
        reader.read(0, 1.0, key)
    assert raised.value.key == key


def open_quickly(reader):
    """The same reader, which gives up at the first error."""
    reader.ranges._attempts = 1
    return reader


def make_loader(split, reader, workers, needed_at=None) -> Loader:
    nothing = np.zeros(len(split), np.int32)
    sampler = BatchSampler(
        split.shard, split.samples, nothing, nothing, BatchesConfig(lanes=2, seconds=2), 1, 16000, SPEEDS,
        encoder_frames=lambda samples: FeaturesConfig().num_frames(samples) // 4,
    )  # fmt: skip
    return Loader(
        sampler, ShardReader(split), None, (0, 1), workers, sidecars={"wise": SidecarSource(reader, needed_at)}
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_them_with_the_audio_at_the_steps_where_they_are_needed(split, written, workers):
    loader = make_loader(split, open_sidecars(written.folder, split), workers, needed_at=lambda step: step < 2)
    keys = list(split.keys())
    for step, batches in enumerate(loader.steps(0, 4)):
        for batch in batches:
            if step >= 2:
                assert batch.sidecars == {}
                continue
            speeds = loader.sampler.micro_batch(batch.step, batch.lane).speeds.tolist()
            assert len(batch.sidecars["wise"]) == len(batch.keys) == len(speeds)
            for key, speed, sidecar in zip(batch.keys, speeds, batch.sidecars["wise"], strict=True):
                assert equal(sidecar, arrays(keys.index(key), 0 if speed < 0.95 else 1))


def test_an_utterance_without_a_sidecar_is_skipped_in_its_batch_and_named(split, tmp_path, caplog):
    writer = SidecarWriter(split, tmp_path, SPEEDS)
    write(writer, writer.missing(), skipped=4)
    writer.finish()
    loader = make_loader(split, open_sidecars(tmp_path, split), workers=2)
    with caplog.at_level(logging.WARNING):
        batches = [batch for step in loader.steps(0, loader.sampler.steps_per_epoch) for batch in step]
    key = list(split.keys())[4]
    assert [batch.quarantined for batch in batches if batch.quarantined] == [[key]]
    assert all(len(batch.sidecars["wise"]) == len(batch.keys) for batch in batches)
    assert f"utterance {key} at speed" in caplog.text
    assert "it was skipped when the others were written" in caplog.text
