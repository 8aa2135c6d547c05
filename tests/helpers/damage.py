"""Splits of which something was broken after they were written."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import soundfile

from data.containers.tar_members import read_members
from data.shards.index import CHECKSUM, read_index


def replace_utterance(split: Path, utterance: int, flac: bytes | None = None, **label: str) -> None:
    """Give an utterance another recording or label, in a split that is sound for all that it says of itself.

    Its new members stand at the end of its shard. Number of samples and length of the text stay those of the index.
    """
    index = read_index(split)
    shard = split / index.shard_name(utterance)
    content = shard.read_bytes()
    offset, size = int(index.offset[utterance]), int(index.size[utterance])
    members = read_members(content[offset : offset + size], 2)
    flac_name, json_name = sorted(members)
    if flac is not None:
        members[flac_name] = flac
    members[json_name] = json.dumps(json.loads(members[json_name]) | label, ensure_ascii=False).encode()

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
        num_bytes = stream.tell()
    shard.write_bytes(content + stream.getvalue()[:num_bytes])

    columns = dict(np.load(split / "index.npz"))
    columns["offset"][utterance] = len(content)
    columns["size"][utterance] = num_bytes
    columns[CHECKSUM][utterance] = zlib.crc32(members[json_name], zlib.crc32(members[flac_name]))
    np.savez(split / "index.npz", **columns)
    summary = json.loads((split / "shards.json").read_text(encoding="utf-8"))
    summary["shards"][index.shard[utterance]]["bytes"] = len(content) + num_bytes
    (split / "shards.json").write_text(json.dumps(summary), encoding="utf-8")


def change_byte(split: Path, utterance: int, position: int) -> None:
    """Change one bit of an utterance's bytes, counted from their beginning, or from their end when negative."""
    index = read_index(split)
    shard = split / index.shard_name(utterance)
    content = bytearray(shard.read_bytes())
    start = int(index.offset[utterance])
    if position < 0:
        start += int(index.size[utterance])
    content[start + position] ^= 1
    shard.write_bytes(content)


def flac_of(num_samples: int, sample_rate_hz: int) -> bytes:
    """A FLAC of noise."""
    stream = io.BytesIO()
    waveform = np.random.default_rng(0).normal(0, 0.1, num_samples)
    soundfile.write(stream, waveform, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
