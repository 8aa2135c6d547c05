"""Sets whose texts a model wrote: filters, lineage, what is dropped, and what a kill leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_shards import RATE_HZ, Said, some_speech, speech, write_set

from data.errors import DataError
from data.shards.index import read_index, read_summary
from data.shards.reader import ShardReader
from data.shards.writer import read_report
from launcher.inference.labellers import Label, Labeller
from launcher.inference.pseudo_labels import TRANSCRIPTS, Filters, NamedLabeller, Task, TextRules, write_pseudo_labels


class Heard(Labeller):
    """Writes what it is told of utterances of so many samples, and counts what it hears."""

    sample_rate_hz = RATE_HZ

    def __init__(self, texts=(), fails_after=10**9):
        self.texts = dict(texts)
        self.batches = []
        self.fails_after = fails_after

    def label_batch(self, waveforms):
        if len(self.batches) >= self.fails_after:
            raise KeyboardInterrupt
        self.batches.append([len(waveform) for waveform in waveforms])
        labels = []
        for waveform in waveforms:
            text, confidence, *ended = self.texts.get(len(waveform), (f"Heard, {len(waveform)}!", 0.9))
            labels.append(Label(text, confidence, *ended))
        return labels


def task(labeller, **changes):
    plain = Task(NamedLabeller(labeller, "model", "a" * 64), None, TextRules(), Filters(), 20.0, 12.0)
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "corpus"
    write_set(folder / "train", some_speech(20, "t"))
    return folder


def texts_of(folder):
    return {row["key"]: row["text"] for row in read_index(folder).rows()}


def test_every_utterance_gets_the_text_of_the_model_under_the_rules_and_keeps_its_audio(corpus, tmp_path):
    labeller = Heard()
    reports = write_pseudo_labels(corpus, tmp_path / "new", task(labeller))
    index, before = read_index(tmp_path / "new" / "train"), read_index(corpus / "train")
    assert reports["train"].utterances == len(before)
    for old, new in zip(before.rows(), index.rows(), strict=True):
        assert old["key"] == new["key"]
        assert old["speaker"] == new["speaker"]
    assert set(texts_of(tmp_path / "new" / "train").values()) == {f"heard {samples}" for samples in before.samples}
    for position in (0, 7, 19):
        assert np.array_equal(ShardReader(index).read(position).waveform, ShardReader(before).read(position).waveform)
    # Batches by length, with their padding.
    for batch in labeller.batches:
        assert len(batch) * max(batch) <= 20 * RATE_HZ
        assert batch == sorted(batch, reverse=True)
    summary = read_summary(tmp_path / "new" / "train")
    assert summary["text_rules"]["normalize"] == "lower"
    lineage = summary["lineage"]
    assert lineage["command"] == "pseudo-label"
    assert lineage["model"] == {"folder": "model", "sha256": "a" * 64}
    assert lineage["sources"][0]["fingerprint"] == before.fingerprint


def test_what_is_dropped_is_counted_and_listed_by_its_reason(tmp_path):
    lengths = {name: 1.0 + number / 10 for number, name in enumerate(("good", "unsure", "empty", "endless", "other"))}
    said = [Said(name, "one two three", waveform=speech(seconds)) for name, seconds in lengths.items()]
    said += [Said("long", "one", waveform=speech(9.0)), Said("silent", "", waveform=speech(0.7))]
    # `write_set` has no rows without a text: a text of no words stands for one that was not transcribed.
    said = [one for one in said if one.text]
    write_set(tmp_path / "set" / "train", said)
    samples = {name: round(RATE_HZ * seconds) for name, seconds in lengths.items()}
    heard = {
        samples["good"]: ("One, two three", 0.8),
        samples["unsure"]: ("one two three", 0.2),
        samples["empty"]: (" [noise] ", 0.9),
        samples["endless"]: ("one two three", 0.9, False),
        samples["other"]: ("five six seven", 0.9),
    }
    filters = Filters(min_confidence=0.5, max_wer=0.4, max_seconds=5.0)
    asked = task(Heard(heard), compared=TRANSCRIPTS, filters=filters)
    report = write_pseudo_labels(tmp_path / "set", tmp_path / "new", asked)["train"]
    assert texts_of(tmp_path / "new" / "train") == {"good": "one two three"}
    kinds = {"low confidence": 1, "nothing recognised": 1, "text without end": 1, "differs": 1, "too long": 1}
    assert report.dropped == kinds
    assert read_summary(tmp_path / "new" / "train")["lineage"]["dropped"] == kinds
    listed = [json.loads(line) for line in (tmp_path / "new" / "rejected.jsonl").read_text().splitlines()]
    assert {row["key"] for row in listed} == {"unsure", "empty", "endless", "other", "long"}
    (different,) = [row for row in listed if row["key"] == "other"]
    assert "its error rate in words is 1.000 against 'one two three', above 0.4" in different["reason"]
    rejected = read_report(tmp_path / "new" / "train").rejected
    assert {row.key for row in rejected} == {row["key"] for row in listed}


def test_a_second_model_decides_what_is_agreed_on(tmp_path):
    write_set(tmp_path / "set" / "train", [Said("a", "x", waveform=speech(1.0)), Said("b", "x", waveform=speech(2.0))])
    first = Heard({RATE_HZ: ("same words", 0.9), 2 * RATE_HZ: ("same words", 0.9)})
    second = Heard({RATE_HZ: ("Same words.", 0.1), 2 * RATE_HZ: ("", 0.0)})
    asked = task(first, compared=NamedLabeller(second, "second", "b" * 64), filters=Filters(max_cer=0.5))
    report = write_pseudo_labels(tmp_path / "set", tmp_path / "new", asked)["train"]
    assert texts_of(tmp_path / "new" / "train") == {"a": "same words"}
    assert report.dropped == {"differs": 1}
    lineage = read_summary(tmp_path / "new" / "train")["lineage"]
    assert lineage["compared_with"] == {"folder": "second", "sha256": "b" * 64}


def test_a_command_that_was_killed_goes_on_behind_the_last_shard_and_ends_as_if_it_had_not_been(corpus, tmp_path):
    whole = Heard()
    write_pseudo_labels(corpus, tmp_path / "whole", task(whole))
    killed = Heard(fails_after=len(whole.batches) - 1)
    with pytest.raises(KeyboardInterrupt):
        write_pseudo_labels(corpus, tmp_path / "new", task(killed))
    assert not (tmp_path / "new" / "train").exists()
    again = Heard()
    write_pseudo_labels(corpus, tmp_path / "new", task(again))
    assert 0 < len(again.batches) < len(whole.batches)
    for name in ("shard-000000.tar", "transcripts.jsonl", "shards.json"):
        made = [(tmp_path / place / "train" / name).read_bytes() for place in ("whole", "new")]
        assert made[0] == made[1], name


def test_the_same_command_again_does_nothing_and_another_is_refused(corpus, tmp_path):
    filters = Filters(min_confidence=0.5)
    first = write_pseudo_labels(corpus, tmp_path / "new", task(Heard(), filters=filters))
    idle = Heard()
    again = write_pseudo_labels(corpus, tmp_path / "new", task(idle, filters=filters))
    assert again["train"] == replace(first["train"], kept=True)
    assert not idle.batches
    with pytest.raises(DataError, match="already there, and was not made by this command"):
        write_pseudo_labels(corpus, tmp_path / "new", task(idle, filters=Filters(min_confidence=0.6)))


def test_torn_labels_are_written_again(corpus, tmp_path):
    with pytest.raises(DataError, match=r"No utterance of .* is left: 20 low confidence"):
        write_pseudo_labels(corpus, tmp_path / "new", task(Heard(), filters=Filters(min_confidence=0.95)))
    files = sorted((tmp_path / "new" / "labels" / "train").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-20])
    looser = Heard()
    # Other filters need no model again but for what is torn.
    write_pseudo_labels(corpus, tmp_path / "new", task(looser))
    heard = sum(map(len, looser.batches))
    assert 0 < heard < 20


@pytest.mark.parametrize("place", [".", "new", ".."])
def test_the_set_that_is_read_is_never_written_to(corpus, place):
    with pytest.raises(DataError, match="never touched"):
        write_pseudo_labels(corpus, corpus / place, task(Heard()))


def test_a_split_that_there_is_not_is_named(corpus, tmp_path):
    with pytest.raises(DataError, match="has no split dev; it has train"):
        write_pseudo_labels(corpus, tmp_path / "new", task(Heard()), splits=["dev"])
