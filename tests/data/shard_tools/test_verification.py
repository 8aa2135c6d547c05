"""What `chorus shards verify` finds in whole sets: each fault is named with its keys, and sound sets are left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_shards import RATE_HZ, Said, some_speech, speech, write_set

from data.shard_tools.findings import KINDS, Finding, is_broken
from data.shard_tools.survey import measure
from data.shard_tools.verification import verify
from data.shards.writer import find_splits, read_index


def encoder_frames(samples: np.ndarray) -> np.ndarray:
    """A frame every 40 ms."""
    return samples // (RATE_HZ // 25)


def found(folder: Path, **options) -> dict[str, Finding]:
    findings = verify(find_splits(folder), encoder_frames=encoder_frames, **options)
    assert len({(finding.kind, finding.split) for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


def keys_of(finding: Finding) -> set[str]:
    return {key for item in finding.items for key in item.keys}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_set(tmp_path / "train", some_speech())


def test_a_sound_set_is_left_alone(sound):
    assert found(sound) == {}
    assert found(sound, workers=3) == {}


# Damage: each changes the files of a split that was written whole.


def first_shard(split: Path) -> Path:
    return split / "shard-000000.tar"


def cut_short(split: Path) -> None:
    path = first_shard(split)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def append_zeros(split: Path) -> None:
    path = first_shard(split)
    path.write_bytes(path.read_bytes() + bytes(512))


def remove(split: Path) -> None:
    first_shard(split).unlink()


def flip_audio(split: Path) -> None:
    path = first_shard(split)
    content = bytearray(path.read_bytes())
    # Behind the header of the tar and that of the FLAC.
    content[1500] ^= 0xFF
    path.write_bytes(content)


def edit_text(split: Path) -> None:
    path = split / "transcripts.jsonl"
    path.write_text(path.read_text().replace("abcde", "abcdf"))


def swap_rows(split: Path) -> None:
    path = split / "transcripts.jsonl"
    first, second, *others = path.read_text().splitlines()
    path.write_text("\n".join([second, first, *others]) + "\n")


def swap_columns(split: Path) -> None:
    columns = dict(np.load(split / "index.npz"))
    columns["samples"][0] += 1
    np.savez(split / "index.npz", **columns)


def lose_row(split: Path) -> None:
    path = split / "transcripts.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")


def tear_summary(split: Path) -> None:
    (split / "shards.json").write_text('{"format": 1, "shards"')


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (cut_short, {"truncated", "unreadable"}),
        (append_zeros, {"truncated"}),
        (remove, {"truncated", "unreadable"}),
        (flip_audio, {"checksum", "unreadable"}),
        (edit_text, {"mismatch"}),
        (swap_rows, {"mismatch"}),
        (swap_columns, {"unreadable"}),
        (lose_row, {"records"}),
        (tear_summary, {"records"}),
    ],
)
def test_damage_is_broken_and_named_with_its_utterances(sound, damage, kinds):
    index = read_index(sound)
    keys = list(index.keys())
    damage(sound)
    findings = [finding for finding in found(sound).values() if finding.severity == "broken"]
    assert {finding.kind for finding in findings} == kinds
    assert is_broken(findings)
    if "records" not in kinds:
        for finding in findings:
            assert keys_of(finding) <= set(keys)
            assert keys_of(finding)
    if damage in (cut_short, remove):
        of_shard = {key for key, shard in zip(keys, index.shard, strict=True) if shard == 0}
        (truncated,) = [finding for finding in findings if finding.kind == "truncated"]
        (unreadable,) = [finding for finding in findings if finding.kind == "unreadable"]
        assert keys_of(truncated) == of_shard
        assert keys_of(unreadable) <= of_shard
        # What lies before the cut is whole.
        assert (keys_of(unreadable) == of_shard) == (damage is remove)


def test_a_key_that_stands_twice_is_broken(sound):
    keys = list(read_index(sound).keys())
    path = sound / "transcripts.jsonl"
    path.write_text(path.read_text().replace(f'"{keys[1]}"', f'"{keys[0]}"'))
    findings = found(sound)
    assert keys_of(findings["duplicate-key"]) == {keys[0]}


# Oddities: each is one utterance among thirty sound ones.

LONG = "abcde fghij abcde fghij abcde fghij"


def clipped(seconds: float, tops: float) -> np.ndarray:
    tone = np.sin(2 * np.pi * 150 * np.arange(round(RATE_HZ * seconds)) / RATE_HZ)
    return np.clip(1.5 * tone, -1, 1) * tops


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (Said("odd", LONG, waveform=1e-4 * speech(3.5)), "silence"),
        (Said("odd", LONG, waveform=np.where(np.arange(28000) == 9, 2e-4, 0.0)), "silence"),
        (Said("odd", LONG, waveform=clipped(3.5, 0.99)), "clipping"),
        # Turned down after it was clipped.
        (Said("odd", LONG, waveform=clipped(3.5, 0.4)), "clipping"),
        (Said("odd", LONG, waveform=np.minimum(clipped(3.5, 0.9), 0.5) * 0.999), "clipping"),
        (Said("odd", ""), "empty-text"),
        (Said("odd", " "), "empty-text"),
        (Said("odd", "a" * 40, waveform=speech(1.2)), "infeasible-text"),
        # Between two equal characters there is a blank.
        (Said("odd", "a" * 27, waveform=speech(1.6)), "infeasible-text"),
        (Said("odd", f"{LONG} é"), "rare-character"),
        (Said("odd", f"{LONG} \u0430"), "rare-character"),
        (Said("odd", LONG, waveform=speech(60.0)), "length-outlier"),
        (Said("odd", LONG, waveform=speech(0.06)), "length-outlier"),
        # The text of another utterance.
        (Said("odd", "abc", waveform=speech(4.0)), "rate-outlier"),
        (Said("odd", 3 * LONG, waveform=speech(1.5)), "rate-outlier"),
        # As long as others, but nearly all of it is a pause.
        (Said("odd", LONG, waveform=np.concatenate([speech(0.3), np.zeros(26000)])), "rate-outlier"),
        (Said("odd", LONG, waveform=some_speech()[3].samples()), "contradicting-text"),
    ],
)
def test_an_odd_utterance_is_a_warning_with_its_key(tmp_path, odd, kind):
    others = [said for said in some_speech() if "é" not in said.text]
    write_set(tmp_path / "train", [*others, odd])
    findings = found(tmp_path / "train")
    assert "odd" in keys_of(findings[kind])
    assert len(keys_of(findings[kind])) <= 2
    assert not is_broken(list(findings.values()))


def test_loud_telephone_speech_is_not_clipped():
    # Mu-law has 16 values between half and full scale: a wave stays at its highest one for several samples.
    wave = 0.95 * np.sin(2 * np.pi * 110 * np.arange(RATE_HZ) / RATE_HZ) * np.linspace(0.9, 1, RATE_HZ)
    compressed = np.sign(wave) * np.log1p(255 * np.abs(wave)) / np.log(256)
    steps = np.round(compressed * 127) / 127
    telephone = np.sign(steps) * (256 ** np.abs(steps) - 1) / 255
    assert measure(telephone.astype(np.float32), RATE_HZ).flat_tops < 3
    assert measure(clipped(1.0, 0.9).astype(np.float32), RATE_HZ).flat_tops > 100


def test_a_character_of_one_speaker_is_named_where_there_are_several(tmp_path):
    said = some_speech()
    for one in said:
        if one.speaker == "u-s1":
            one.text += " ’"
    write_set(tmp_path / "train", said)
    finding = found(tmp_path / "train")["one-speaker-character"]
    (item,) = finding.items
    assert "’" in item.detail
    assert "U+2019" in item.detail
    assert "u-s1" in item.detail
    # Some of the utterances are named where nobody reads the list of keys.
    assert f"({', '.join(item.keys[:3])} and {len(item.keys) - 3} more)" in item.detail
    assert set(item.keys) == {one.key for one in said if one.speaker == "u-s1"}


def test_in_small_splits_too_words_are_compared_with_words_and_sentences_with_sentences(tmp_path):
    said = []
    # Five characters a second for a word alone, up to twenty in a sentence.
    for number in range(60):
        text = ("abcde fghij " * 5)[: 4 + number].strip()
        rate = 5 + 15 * len(text) / 64
        said.append(Said(f"u{number}", text, waveform=speech(len(text) / rate, number)))
    odd = [Said("slow", LONG, waveform=speech(6.0, 7)), Said("fast", "abcdef", waveform=speech(0.35, 8))]
    write_set(tmp_path / "train", said + odd)
    assert keys_of(found(tmp_path / "train")["rate-outlier"]) == {"slow", "fast"}


def test_languages_are_judged_apart_by_their_rates(tmp_path):
    said = some_speech()
    # Three characters a second, as in Chinese; thirty of them are no outliers of the others.
    for number in range(30):
        text = "一二三四五六七八九十"[: 4 + number % 5]
        said.append(Said(f"zh{number}", text, "zh-s", "zh", waveform=speech(len(text) / 3, 900 + number)))
    write_set(tmp_path / "train", said)
    assert "rate-outlier" not in found(tmp_path / "train")


@pytest.mark.parametrize(
    "change",
    [
        lambda waveform: waveform,
        lambda waveform: np.concatenate([np.zeros(800), waveform]),
        lambda waveform: np.concatenate([waveform, np.zeros(1234)]),
    ],
)
def test_one_recording_under_two_keys_is_a_duplicate_also_with_silence_around_it(tmp_path, change):
    said = some_speech()
    said.append(Said("again", said[5].text, said[5].speaker, waveform=change(said[5].samples())))
    write_set(tmp_path / "train", said)
    assert keys_of(found(tmp_path / "train")["duplicate-audio"]) == {"again", said[5].key}


def test_what_two_splits_share_is_leakage(tmp_path):
    train = some_speech(30, "t")
    dev = some_speech(30, "d")
    # Sentences of its own, but for one that differs in case and punctuation alone.
    for one in dev:
        one.text = f"dev {one.text}"
    dev[0].text = train[7].text.upper() + "!"
    dev[1].waveform = train[8].samples()
    dev[2].speaker = train[9].speaker
    dev[3].text += "\u00df"
    write_set(tmp_path / "train", train)
    write_set(tmp_path / "dev", dev)
    findings = found(tmp_path)
    assert keys_of(findings["leaked-text"]) == {"train/t007", "dev/d000"}
    assert keys_of(findings["leaked-audio"]) == {"train/t008", "dev/d001"}
    assert {"train/t009", "dev/d002"} <= keys_of(findings["leaked-speaker"])
    assert keys_of(findings["leaked-speaker"]) >= {one.key.replace("t", "train/t") for one in train[1::4]}
    assert "d003" in keys_of(findings["unseen-character"])
    assert {finding.split for finding in findings.values()} >= {"dev+train", "dev"}


def test_speakers_that_are_in_all_splits_by_design_are_named_on_request_alone(tmp_path):
    train = some_speech(30, "t")
    dev = some_speech(30, "d")
    for one in [*train, *dev]:
        one.speaker = one.speaker[-2:]
    write_set(tmp_path / "train", train)
    write_set(tmp_path / "dev", dev)
    assert "leaked-speaker" not in found(tmp_path)
    assert len(found(tmp_path, held_out_speakers=True)["leaked-speaker"].items) == 4


def test_a_broken_split_does_not_keep_the_others_from_being_read(tmp_path):
    write_set(tmp_path / "dev", some_speech(3, "d"))
    write_set(tmp_path / "train", [*some_speech(), Said("odd", "")])
    tear_summary(tmp_path / "dev")
    findings = found(tmp_path)
    assert findings["records"].split == "dev"
    assert keys_of(findings["empty-text"]) == {"odd"}


def test_every_kind_says_what_it_means():
    for kind in KINDS.values():
        assert kind.severity in ("broken", "warning")
        assert len(kind.meaning.split()) > 4
    assert json.dumps(sorted(KINDS))
