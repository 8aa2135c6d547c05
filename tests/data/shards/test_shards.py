"""Shards: reproducible, whole or absent, readable by plain webdataset, and honest about what was left out."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audio import Clip, Utterance
from data.errors import DataError
from data.shard_tools.statistics import stats
from data.shard_tools.survey import survey
from data.shards import writer
from data.shards.writer import find_splits, read_index, write_split

RATE_HZ = 8000
TEXTS = ("one", "два три", "l'été", "four")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * RATE_HZ)
    soundfile.write(path, noise.astype(np.float32), RATE_HZ)
    return path


def some_utterances(recording: Path, count: int = 12) -> list[Utterance]:
    return [
        Utterance(
            f"u{number:02d}",
            (Clip(recording, number * 0.3, 0.2 + 0.05 * (number % 4)),),
            TEXTS[number % 4],
            "train",
            speaker=f"s{number % 3}",
            language="xx",
        )
        for number in range(count)
    ]


def write(utterances: list[Utterance], folder: Path, **changes) -> writer.SplitReport:
    given_arguments = {"sample_rate_hz": RATE_HZ, "shard_seconds": 1.0, "seed": 1, "workers": 2}
    return write_split(utterances, folder, **(given_arguments | changes))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_plain_webdataset_reads_back_what_was_written(recording: Path, tmp_path: Path) -> None:
    utterances = {utterance.key: utterance for utterance in some_utterances(recording)}
    write(list(utterances.values()), tmp_path / "train")
    tars = sorted(str(path) for path in (tmp_path / "train").glob("*.tar"))
    assert len(tars) > 1
    seen = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in seen) == sorted(utterances)
    for sample in seen:
        utterance = utterances[sample["__key__"]]
        label = json.loads(sample["json"])
        waveform, rate_hz = soundfile.read(webdataset.writer.io.BytesIO(sample["flac"]))
        assert rate_hz == RATE_HZ
        assert len(waveform) == round(utterance.clips[0].seconds * RATE_HZ)
        assert label == {
            "text": utterance.text,
            "seconds": len(waveform) / RATE_HZ,
            "speaker": utterance.speaker,
            "language": "xx",
        }


def test_the_index_follows_the_shards_and_the_transcripts(recording: Path, tmp_path: Path) -> None:
    report = write(some_utterances(recording), tmp_path / "train")
    index = read_index(tmp_path / "train")
    in_tars = [
        sample["__key__"]
        for name in index.names
        for sample in webdataset.WebDataset(str(tmp_path / "train" / name), shardshuffle=False)
    ]
    assert list(index.keys()) == in_tars
    assert [len(text) for text in index.transcripts()] == index.text_length.tolist()
    assert len(index) == report.utterances == 12
    assert index.samples.sum() / RATE_HZ == pytest.approx(report.seconds)
    assert (np.bincount(index.shard, index.samples / RATE_HZ)[:-1] >= 1.0).all()


@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.text("aбя_-9", min_size=1, max_size=130), min_size=1, max_size=5, unique=True))
def test_one_range_read_yields_an_utterance_whatever_its_key(
    recording: Path, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    # Long and non-ASCII names need extra tar headers, which the byte range must include.
    folder = tmp_path_factory.mktemp("keys") / "train"
    write([Utterance(name, (Clip(recording, 0.0, 0.1),), "t", "train") for name in names], folder)
    assert sorted(read_index(folder).keys()) == sorted(names)
    assert survey(folder).findings == []


def test_the_same_seed_gives_the_same_bytes_whatever_workers_and_order_of_input(
    recording: Path, tmp_path: Path
) -> None:
    utterances = some_utterances(recording)
    write(utterances, tmp_path / "first" / "train", workers=1)
    write(utterances[::-1], tmp_path / "second" / "train", workers=3)
    assert bytes_of(tmp_path / "first" / "train") == bytes_of(tmp_path / "second" / "train")


def test_another_seed_gives_another_order_of_the_same_utterances(recording: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        write(some_utterances(recording), tmp_path / str(seed) / "train", seed=seed)
    first, second = (list(read_index(tmp_path / str(seed) / "train").keys()) for seed in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_audio_that_cannot_be_decoded_is_reported_and_the_rest_written(recording: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"fLaC and nothing else")
    utterances = [*some_utterances(recording), Utterance("bad", (Clip(broken),), "t", "train", line=13)]
    report = write(utterances, tmp_path / "train")
    assert report.utterances == 12
    assert [(row.line, row.key) for row in report.rejected] == [(13, "bad")]
    assert "broken.flac" in report.rejected[0].reason
    assert writer.read_report(tmp_path / "train") == report


def test_nothing_decodable_is_an_error_that_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of 1 utterances of train .*no audio file"):
        write([Utterance("bad", (Clip(tmp_path / "gone.wav"),), "t", "train")], tmp_path / "out" / "train")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_utterances_with_one_key_are_refused(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="u00"):
        write(some_utterances(recording)[:1] * 2, tmp_path / "train")


def test_a_split_is_never_written_over(recording: Path, tmp_path: Path) -> None:
    write(some_utterances(recording), tmp_path / "train")
    before = bytes_of(tmp_path / "train")
    with pytest.raises(DataError, match="already there"):
        write(some_utterances(recording, 3), tmp_path / "train")
    assert bytes_of(tmp_path / "train") == before


def test_an_interrupted_split_leaves_no_folder_under_its_name(recording: Path, tmp_path: Path) -> None:
    def interrupt(split: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(some_utterances(recording), tmp_path / "train", on_progress=interrupt)
    assert not (tmp_path / "train").exists()


def test_what_a_killed_process_left_is_cleared_and_a_living_ones_is_not(recording: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    for process_id in (dead.pid, os.getppid()):
        (tmp_path / f".train.{host}-{process_id}.partial").mkdir()
    write(some_utterances(recording), tmp_path / "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".train.{host}-{os.getppid()}.partial",
        "train",
    ]


def test_a_full_disk_is_a_data_error(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._HashedFile, "write", full)
    with pytest.raises(DataError, match="No space left"):
        write(some_utterances(recording), tmp_path / "train")
    assert list(tmp_path.iterdir()) == []


def test_decoding_runs_ahead_of_the_writer_by_a_bounded_number(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = writer._encode
    lock = threading.Lock()
    started = 0

    def counting(utterance: Utterance, sample_rate_hz: int) -> object:
        nonlocal started
        with lock:
            started += 1
        return encode(utterance, sample_rate_hz)

    ahead: list[int] = []
    monkeypatch.setattr(writer, "_encode", counting)
    write(
        some_utterances(recording, 30),
        tmp_path / "train",
        on_progress=lambda split, done, total: ahead.append(started - done),
    )
    assert len(ahead) == 30
    assert max(ahead) <= 2 * writer.AHEAD_PER_WORKER


# --- reading and inspecting --------------------------------------------------------------------------


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def edit_summary(folder: Path, **changes) -> None:
    summary = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps(summary | changes))


def rename_shard(folder: Path, name: object) -> None:
    shards = json.loads((folder / "shards.json").read_text())["shards"]
    edit_summary(folder, shards=[shards[0] | {"name": name}, *shards[1:]])


def move_offsets(folder: Path, by_bytes: int) -> None:
    with np.load(folder / "index.npz") as stored:
        columns = dict(stored)
    np.savez(folder / "index.npz", **(columns | {"offset": columns["offset"] + by_bytes}))


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda folder: (folder / "shards.json").unlink(), "no shards.json"),
        (lambda folder: (folder / "shards.json").write_text("{"), "cannot be read"),
        (lambda folder: edit_summary(folder, format=99), "format 99"),
        (lambda folder: rename_shard(folder, "../train/shard-000000.tar"), "no file name"),
        (lambda folder: rename_shard(folder, "/etc/passwd"), "no file name"),
        (lambda folder: rename_shard(folder, ".."), "no file name"),
        (lambda folder: rename_shard(folder, "a\0.tar"), "no file name"),
        (lambda folder: rename_shard(folder, 3), r"at shards\.0\.name"),
        (lambda folder: (folder / "shards.json").write_text("[]"), "cannot be read"),
        (lambda folder: edit_summary(folder, shards={}), "at shards: .* valid list"),
        (lambda folder: edit_summary(folder, shards=["shard-000000.tar"]), r"at shards\.0: "),
        (lambda folder: edit_summary(folder, shards=[{"name": "shard-000000.tar"}]), r"at shards\.0\.utterances: "),
        (lambda folder: edit_summary(folder, shards=[]), "index.npz has 12 utterances"),
        (lambda folder: (folder / "index.npz").write_bytes(b"PK"), "index cannot be read"),
        (lambda folder: (folder / "index.npz").unlink(), "index cannot be read"),
        (lambda folder: os.truncate(folder / "index.npz", 600), "index cannot be read"),
        (lambda folder: move_offsets(folder, 10**6), "points outside"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar should have"),
        (lambda folder: os.truncate(folder / "shard-000000.tar", 512), "has 512"),
    ],
)
def test_a_torn_split_is_not_read(recording: Path, tmp_path: Path, damage, seen: str) -> None:
    write(some_utterances(recording), tmp_path / "train")
    damage(tmp_path / "train")
    with pytest.raises(DataError, match=seen):
        read_index(tmp_path / "train")
    assert problems_of(tmp_path / "train")


def test_transcripts_that_end_early_are_an_error(recording: Path, tmp_path: Path) -> None:
    write(some_utterances(recording), tmp_path / "train")
    path = tmp_path / "train" / "transcripts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="11 lines for 12 utterances"):
        list(read_index(tmp_path / "train").keys())


def test_an_index_is_read_from_a_url(recording: Path, tmp_path: Path) -> None:
    write(some_utterances(recording), tmp_path / "train")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "train"), "/corpus/train", recursive=True)
    local = read_index(tmp_path / "train")
    remote = read_index("memory://corpus/train/")
    assert list(remote.keys()) == list(local.keys())
    np.testing.assert_array_equal(remote.offset, local.offset)


def problems_of(folder: Path) -> list[str]:
    return [item.detail for finding in survey(folder).findings for item in finding.items]


def test_verify_names_the_shard_and_the_utterance_that_were_damaged(recording: Path, tmp_path: Path) -> None:
    write(some_utterances(recording), tmp_path / "train")
    assert problems_of(tmp_path / "train") == []
    index = read_index(tmp_path / "train")
    victim = 7
    flip_byte(tmp_path / "train" / index.names[index.shard[victim]], int(index.offset[victim]))
    problems = problems_of(tmp_path / "train")
    name = index.names[index.shard[victim]]
    key = list(index.keys())[victim]
    assert any(name in problem and "SHA-256" in problem for problem in problems)
    assert any(f"{name}: {key}:" in problem for problem in problems)
    assert len(problems) == 2


def test_verify_notices_a_transcript_that_was_edited(recording: Path, tmp_path: Path) -> None:
    write(some_utterances(recording), tmp_path / "train")
    path = tmp_path / "train" / "transcripts.jsonl"
    path.write_text(path.read_text().replace("four", "five"))
    problems = problems_of(tmp_path / "train")
    assert len(problems) == 3
    assert all("transcripts.jsonl" in problem for problem in problems)


def test_stats_count_what_was_written(recording: Path, tmp_path: Path) -> None:
    report = write(some_utterances(recording), tmp_path / "train")
    counted = stats(tmp_path / "train")
    assert counted["utterances"] == 12
    assert counted["hours"] == pytest.approx(12 * 0.275 / 3600)
    assert counted["seconds"]["shortest"] == pytest.approx(0.2)
    assert counted["seconds"]["longest"] == pytest.approx(0.35)
    assert counted["characters"]["total"] == 3 * sum(map(len, TEXTS))
    assert counted["speakers"] == {"s0": 4, "s1": 4, "s2": 4}
    assert counted["bytes"] == report.bytes == sum(p.stat().st_size for p in (tmp_path / "train").glob("*.tar"))
    assert json.loads(json.dumps(counted)) == counted


def test_splits_are_found_in_a_corpus_folder_and_in_a_split(recording: Path, tmp_path: Path) -> None:
    for split in ("dev", "train"):
        write(some_utterances(recording, 3), tmp_path / split)
    assert list(find_splits(tmp_path)) == ["dev", "train"]
    assert find_splits(tmp_path / "dev") == {"dev": tmp_path / "dev"}
    with pytest.raises(DataError, match="no shards at"):
        find_splits(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("samples", "rate_hz", "reason"),
    [
        (np.zeros(RATE_HZ), RATE_HZ, "digital silence"),
        (np.full(1, 0.5), 48000, "less than one frame"),
        (np.zeros(0), RATE_HZ, "holds no samples"),
        (np.outer(np.sin(np.arange(RATE_HZ)), [0.5, -0.5]), RATE_HZ, "cancel each other out"),
    ],
)
def test_silence_is_no_speech(recording: Path, tmp_path: Path, samples: np.ndarray, rate_hz: int, reason: str) -> None:
    soundfile.write(tmp_path / "a.wav", samples, rate_hz)
    utterances = [*some_utterances(recording, 1), Utterance("a", (Clip(tmp_path / "a.wav"),), "t", "train")]
    report = write(utterances, tmp_path / "train")
    assert reason in report.rejected[0].reason
