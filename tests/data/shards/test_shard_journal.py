"""Interrupted preparations: finished shards are never written again, and the split is what it would have been."""

import fcntl
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Clip, RejectedRow, Utterance
from data.corpora.finished import finished_splits
from data.errors import DataError
from data.shards import writer
from data.shards.index import read_index
from data.shards.writer import write_split

RATE_HZ = 8000


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 recordings of 0.3 s, of which one is broken and one is too loud."""
    folder = tmp_path_factory.mktemp("audio")
    noise = np.random.default_rng(0).normal(0, 0.1, (24, 2400))
    noise[7] *= 20
    for number, samples in enumerate(noise):
        soundfile.write(folder / f"{number:02d}.wav", np.clip(samples, -1.9, 1.9), RATE_HZ, subtype="FLOAT")
    (folder / "11.wav").write_bytes(b"RIFF and nothing else")
    return folder


def some_utterances(audio: Path) -> list[Utterance]:
    utterances: list[Utterance] = []
    for number, path in enumerate(sorted(audio.glob("*.wav"))):
        utterances.append(Utterance(f"u{number}", (Clip(path),), f"text {number} ё", "train", line=number + 1))
    return utterances


def write(audio: Path, folder: Path, **options) -> writer.SplitReport:
    given = {"sample_rate_hz": RATE_HZ, "shard_seconds": 1.0, "seed": 1, "workers": 2}
    return write_split(some_utterances(audio), folder, **(given | options))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(audio: Path, folder: Path, point: str) -> None:
    if point == "rename":
        Path.rename = kill
    write(audio, folder, on_progress=lambda split, done, total: kill() if str(done) == point else None)


def killed(audio: Path, folder: Path, point: str) -> Path:
    """The hidden folder that a process leaves which is killed with SIGKILL at a point: an utterance, or the rename."""
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(audio, folder, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not folder.exists()
    (partial,) = folder.parent.glob(".train.*.partial")
    return partial


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard is, and when it was written."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def undisturbed(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "train"
    write(audio, folder, workers=1)
    return bytes_of(folder)


@pytest.mark.parametrize(
    ("point", "least"),
    [("2", 0), ("13", 2), ("24", 5), ("rename", 5)],
)
def test_after_kill_9_finished_shards_are_the_same_files_and_the_split_has_the_same_bytes(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, least: int
) -> None:
    partial = killed(audio, tmp_path / "train", point)
    lines = (partial / "journal.jsonl").read_text().splitlines()[1:]
    finished = [json.loads(line)["shard"][0]["name"] for line in lines]
    assert len(finished) >= least
    before = {name: state for name, state in states(partial).items() if name in finished}

    decoded: list[str] = []
    encode = writer._encode

    def counting(utterance: Utterance, sample_rate_hz: int) -> writer.Flac | RejectedRow:
        decoded.append(utterance.key)
        return encode(utterance, sample_rate_hz)

    monkeypatch.setattr(writer, "_encode", counting)
    write(audio, tmp_path / "train", workers=3)
    assert before.items() <= states(tmp_path / "train").items()
    assert bytes_of(tmp_path / "train") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    num_done = json.loads(lines[-1])["num_done"] if lines else 0
    assert len(decoded) == 24 - num_done


@pytest.mark.parametrize(
    "damage",
    [
        lambda partial: os.truncate(partial / "shard-000001.tar", 1000),
        lambda partial: (partial / "shard-000000.tar").unlink(),
        lambda partial: os.truncate(partial / "transcripts.jsonl", 100),
        lambda partial: os.truncate(partial / "journal.jsonl", 3000),
        lambda partial: (partial / "journal.jsonl").write_bytes(b"\x80\x04"),
        lambda partial: (partial / "journal.jsonl").write_text(
            (partial / "journal.jsonl").read_text().replace('"libsndfile": "', '"libsndfile": "0')
        ),
        lambda partial: (partial / "journal.jsonl").write_text(
            (partial / "journal.jsonl").read_text().replace("shard-000001.tar", "../shard-000001.tar")
        ),
    ],
)
def test_what_a_power_cut_or_another_version_left_is_written_again(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path, damage
) -> None:
    damage(killed(audio, tmp_path / "train", "13"))
    write(audio, tmp_path / "train")
    assert bytes_of(tmp_path / "train") == undisturbed


def test_recordings_that_changed_since_are_read_again(audio: Path, tmp_path: Path) -> None:
    copies = tmp_path / "audio"
    copies.mkdir()
    for path in audio.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    killed(copies, out / "train", "20")
    # As long as before, and of other content.
    for path in copies.iterdir():
        if path.name != "11.wav":
            samples, _ = soundfile.read(path)
            soundfile.write(path, samples[::-1], RATE_HZ, subtype="FLOAT")
    write(copies, out / "train")
    write(copies, tmp_path / "anew" / "train")
    assert bytes_of(out / "train") == bytes_of(tmp_path / "anew" / "train")


def test_another_split_does_not_go_on_from_what_was_left(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed(audio, tmp_path / "train", "13")
    write(audio, tmp_path / "train", seed=2)
    assert bytes_of(tmp_path / "train") != undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_ctrl_c_and_a_full_disk_keep_what_is_finished(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path, error
) -> None:
    def fail(split: str, done: int, total: int) -> None:
        if done == 13:
            raise error

    with pytest.raises((KeyboardInterrupt, DataError)):
        write(audio, tmp_path / "train", on_progress=fail)
    (partial,) = tmp_path.iterdir()
    before = states(partial)
    seen: list[int] = []
    write(audio, tmp_path / "train", on_progress=lambda split, done, total: seen.append(done))
    assert 1 < seen[0] <= 14
    assert before["shard-000000.tar"] == states(tmp_path / "train")["shard-000000.tar"]
    assert bytes_of(tmp_path / "train") == undisturbed


def test_a_split_that_another_process_is_writing_is_not_written_a_second_time(audio: Path, tmp_path: Path) -> None:
    partial = killed(audio, tmp_path / "train", "13")
    before = bytes_of(partial)
    with (partial / "journal.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another process is writing train into"):
            write(audio, tmp_path / "train")
        assert bytes_of(partial) == before
    write(audio, tmp_path / "train")
    assert len(read_index(tmp_path / "train")) == 23


def test_a_split_that_another_host_wrote_meanwhile_is_kept_as_it_is(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    def write_on_the_other(split: str, done: int, total: int) -> None:
        if done == total:
            write(audio, tmp_path / "other" / "train")
            (tmp_path / "other" / "train").rename(tmp_path / "train")

    with pytest.raises(DataError, match=r"wrote .*train meanwhile"):
        write(audio, tmp_path / "train", on_progress=write_on_the_other)
    assert bytes_of(tmp_path / "train") == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "train"]


def test_a_split_that_was_killed_before_its_name_is_no_split_of_the_corpus(audio: Path, tmp_path: Path) -> None:
    killed(audio, tmp_path / "train", "rename")
    shape = {"sample_rate_hz": RATE_HZ, "shard_seconds": 1.0, "seed": 1}
    assert finished_splits(tmp_path, {"train": some_utterances(audio)}, shape, replace=False) == ()


def test_what_another_host_left_is_named_and_stays(
    audio: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".train.elsewhere-17.partial").mkdir()
    write(audio, tmp_path / "train")
    assert (tmp_path / ".train.elsewhere-17.partial").is_dir()
    assert "on another host" in caplog.text
