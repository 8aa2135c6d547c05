"""Token counts that are stored in a file."""

import json

import numpy as np
import pytest

import data.sampling.token_counts
from data.sampling.token_counts import token_counts
from data.shards.index import read_index
from data.text.tokenizer import TokenizerConfig, token_lengths, train_tokenizer

TEXTS = ["abba", "", "a", "cabbage", "beef" * 100]


def write_split(folder, texts):
    """A split without audio: its index, texts and a shard of the right size."""
    folder.mkdir()
    count = len(texts)
    (folder / "shard-000000.tar").write_bytes(b"x" * count)
    ones = np.ones(count, np.int64)
    columns = {"shard": np.zeros(count, np.int32), "offset": np.arange(count), "size": ones, "samples": ones}
    lengths = np.array([len(text) for text in texts], np.int32)
    np.savez(folder / "index.npz", allow_pickle=False, **columns, text_length=lengths)
    rows = []
    for number, text in enumerate(texts):
        rows.append(json.dumps({"key": str(number), "text": text, "speaker": "", "language": ""}))
    (folder / "transcripts.jsonl").write_text("\n".join(rows) + "\n")
    shard = {"name": "shard-000000.tar", "utterances": count, "seconds": 1, "bytes": count, "sha256": str(texts)[:64]}
    summary = {"format": 1, "sample_rate_hz": 16000, "shards": [shard], "rejected": []}
    (folder / "shards.json").write_text(json.dumps(summary))
    return read_index(folder)


@pytest.fixture
def index(tmp_path):
    return write_split(tmp_path / "train", TEXTS)


@pytest.fixture
def tokenizer(tmp_path):
    return train_tokenizer(["abcdefg"], TokenizerConfig(), tmp_path)


@pytest.fixture
def readings(monkeypatch):
    """Grows by one whenever transcripts are counted."""
    seen = []

    def count(transcripts, tokenizer):
        seen.append(tokenizer)
        return token_lengths(transcripts, tokenizer)

    monkeypatch.setattr(data.sampling.token_counts, "token_lengths", count)
    return seen


def assert_counts(counted, texts, tokenizer):
    for counts, expected in zip(counted, token_lengths(texts, tokenizer), strict=True):
        assert counts.dtype == expected.dtype
        assert counts.tolist() == expected.tolist()


def test_transcripts_are_counted_once_and_then_read_from_the_file(index, tokenizer, tmp_path, readings):
    for _ in range(2):
        assert_counts(token_counts(index, tokenizer, tmp_path / "counts.npz"), TEXTS, tokenizer)
    assert len(readings) == 1


def test_counts_of_another_tokenizer_or_of_other_shards_are_not_used(index, tokenizer, tmp_path, readings):
    file = tmp_path / "counts.npz"
    token_counts(index, tokenizer, file)
    pairs = train_tokenizer(TEXTS * 9, TokenizerConfig(kind="bpe", pieces=16), tmp_path / "other")
    assert_counts(token_counts(index, pairs, file), TEXTS, pairs)
    other = write_split(tmp_path / "other-train", TEXTS[::-1])
    assert_counts(token_counts(other, pairs, file), TEXTS[::-1], pairs)
    assert len(readings) == 3


@pytest.mark.parametrize("harm", ["torn", "flipped", "empty"])
def test_a_harmed_file_is_replaced(index, tokenizer, tmp_path, readings, harm):
    file = tmp_path / "counts.npz"
    token_counts(index, tokenizer, file)
    content = file.read_bytes()
    place = content.index(np.array([4, 0, 1, 7], np.uint16).tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    file.write_bytes({"torn": content[:-200], "flipped": flipped, "empty": b""}[harm])
    assert_counts(token_counts(index, tokenizer, file), TEXTS, tokenizer)
    assert len(readings) == 2
    assert file.read_bytes() == content
