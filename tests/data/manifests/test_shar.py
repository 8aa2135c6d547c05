"""lhotse's Shar, written by lhotse itself: cuts whose recordings lie in tars."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Utterance, read_audio
from data.manifests.manifest import manifest_files, read_manifest

lhotse = pytest.importorskip("lhotse")

RATE_HZ = 16000


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of train and one of dev: five cuts of 2 s, each with a supervision of 1 s from 0.25 s on."""
    root = tmp_path_factory.mktemp("shar")
    noise = np.random.default_rng(0).normal(0, 0.1, (5, 2 * RATE_HZ)).astype(np.float32)
    cuts = []
    for number, samples in enumerate(noise):
        path = root / "wav" / f"r{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
        cut = lhotse.Recording.from_file(path).to_cut()
        cut.supervisions.append(
            lhotse.SupervisionSegment(
                id=f"s{number}",
                recording_id=cut.recording_id,
                start=0.25,
                duration=1.0,
                text=f"HELLO {number}",
                speaker="a",
                language="en",
            )
        )
        cuts.append(cut)
    for split, part in (("train", cuts[:3]), ("dev", cuts[3:])):
        (root / "shar" / split).mkdir(parents=True)
        lhotse.CutSet.from_cuts(part).to_shar(root / "shar" / split, fields={"recording": "flac"}, shard_size=2)
    return root


def read(path: Path) -> tuple[list[Utterance], list[str]]:
    utterances, rejected = read_manifest(path)
    return utterances, [row.reason for row in rejected]


def test_supervisions_are_read_by_their_place_in_the_member_of_their_cut(shar: Path) -> None:
    utterances, reasons = read(shar / "shar")
    assert reasons == []
    # The folder dev comes first; s3 and s4 are in it.
    assert [(row.key, row.text, row.split) for row in utterances] == [
        *((f"s{number}", f"HELLO {number}", "dev") for number in (3, 4)),
        *((f"s{number}", f"HELLO {number}", "train") for number in (0, 1, 2)),
    ]
    assert {(row.speaker, row.language) for row in utterances} == {("a", "en")}
    for row in utterances:
        whole, _ = soundfile.read(shar / "wav" / f"r{row.key[1:]}.wav", dtype="float32")
        np.testing.assert_array_equal(read_audio(row, RATE_HZ), whole[4000:20000])


def test_one_split_of_a_shar_is_read_by_itself_and_its_files_are_known(shar: Path) -> None:
    utterances, _ = read(shar / "shar" / "train")
    assert [row.key for row in utterances] == ["s0", "s1", "s2"]
    files = manifest_files(shar / "shar" / "train")
    assert [path.name for path in files.lists] == ["cuts.000000.jsonl.gz", "cuts.000001.jsonl.gz"]
    assert [path.name for path in files.containers] == ["recording.000000.tar", "recording.000001.tar"]


def test_cuts_whose_recording_is_missing_or_not_a_member_are_rejected(shar: Path, tmp_path: Path) -> None:
    for path in (shar / "shar" / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "recording.000001.tar").unlink()
    lines = gzip.decompress((tmp_path / "cuts.000000.jsonl.gz").read_bytes()).splitlines()
    cuts = [json.loads(line) for line in lines]
    cuts[0]["id"] = "other"
    with gzip.open(tmp_path / "cuts.000000.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(cut) + "\n" for cut in [*cuts, 5]))
    utterances, reasons = read(tmp_path)
    assert [row.key for row in utterances] == ["s1"]
    assert "is not in recording.000000.tar" in reasons[0]
    assert "a JSON int" in reasons[1]
    assert "there is no recording.000001.tar" in reasons[2]


def test_a_cut_of_a_shar_that_is_read_without_its_tar_says_what_it_is(shar: Path) -> None:
    _, reasons = read(shar / "shar" / "dev" / "cuts.000000.jsonl.gz")
    assert all("recording is a shar" in reason for reason in reasons)
    assert len(reasons) == 2
