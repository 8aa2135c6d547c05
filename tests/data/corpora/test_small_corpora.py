"""yesno and the prompts of Asterisk as they are published: labels in names of files, lists apart from recordings."""

import gzip

import numpy as np
import pytest
from G722 import G722
from lookalikes import of_split, reasons, samples_by_key, texts, write_noise, write_text

from data.corpora import asterisk, prepare, yesno
from data.corpora.asterisk import AsteriskConfig
from data.corpora.yesno import YesnoConfig
from data.errors import DataError

ITALIAN = (
    "; Italian prompts, by Carlo",
    "activated: Attivato.",
    "agent-alreadyon:L'agente è già collegato.",
    "digits/1: uno",
    "silence/1: (silenzio)",
    "missing: Non c'è.",
    "",
    "no-text:",
)


def test_the_words_of_yesno_are_in_the_names_of_its_files(tmp_path):
    root = tmp_path / "waves_yesno"
    trained = [f"0_{number // 4 % 2}_{number // 2 % 2}_{number % 2}" for number in range(8)]
    for name in [*trained, "1_0_1_1"]:
        write_noise(root / f"{name}.wav", 0.3, rate_hz=8000)
    write_noise(root / "recorder_test.wav", 0.3, rate_hz=8000)
    write_text(root / "README", "This dataset was created for the Kaldi project")
    report = prepare(YesnoConfig(root=tmp_path), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 7, "dev": 1, "test": 1}
    assert report.rows == 10
    assert "is not named by the words in it" in report.rejected[0].reason
    assert samples_by_key(tmp_path / "shards" / "test") == {"1_0_1_1": 4800}
    selection = yesno.select(YesnoConfig(root=root), 1)
    assert texts(selection, "test") == {"1_0_1_1": "yes no yes yes"}
    assert {utterance.language for utterance in selection.utterances} == {"he"}


@pytest.fixture
def prompts(tmp_path):
    root = tmp_path / "prompts"
    for name in ("activated", "agent-alreadyon", "digits/1", "silence/1", "no-text", "beep"):
        write_noise(root / "sounds" / "it_IT_m_Carlo" / f"{name}.wav", 0.3, rate_hz=8000)
    listed = root / "doc" / "core-sounds-it.txt.gz"
    listed.parent.mkdir(parents=True)
    with gzip.open(listed, "wt", encoding="utf-8") as file:
        file.write("\n".join(ITALIAN))
    write_noise(root / "en" / "activated.wav", 0.3, rate_hz=8000)
    write_text(root / "en" / "core-sounds-en.txt", "activated: Activated.")
    return root


def test_lists_and_voices_are_found_wherever_they_were_unpacked(prompts):
    selection = asterisk.select(AsteriskConfig(root=prompts), 1)
    assert {(row.key, row.text, row.language, row.speaker) for row in selection.utterances} == {
        ("it_IT_m_Carlo_activated", "attivato", "it", "it_IT_m_Carlo"),
        ("it_IT_m_Carlo_agent-alreadyon", "l'agente è già collegato", "it", "it_IT_m_Carlo"),
        ("it_IT_m_Carlo_digits_1", "uno", "it", "it_IT_m_Carlo"),
        ("en_activated", "activated", "en", "en"),
    }


def test_a_voice_that_a_link_names_too_is_read_once(prompts):
    link = prompts / "sounds" / "it"
    link.symlink_to("it_IT_m_Carlo")
    config = AsteriskConfig(root=prompts, languages=("it",))
    assert {utterance.speaker for utterance in asterisk.select(config, 1).utterances} == {"it_IT_m_Carlo"}
    (prompts / "sounds" / "it_IT_m_Carlo").rename(prompts.parent / "elsewhere")
    link.unlink()
    link.symlink_to(prompts.parent / "elsewhere")
    assert {utterance.speaker for utterance in asterisk.select(config, 1).utterances} == {"it"}


def test_prompts_in_g722_are_preferred_to_those_of_half_the_rate(prompts, tmp_path):
    noise = np.random.default_rng(1).integers(-8000, 8000, 6400).tolist()
    (prompts / "en" / "activated.g722").write_bytes(G722(16000, 64000).encode(noise))
    report = prepare(AsteriskConfig(root=prompts, languages=("en",)), tmp_path / "shards", seed=1)
    (split,) = report.splits
    assert samples_by_key(tmp_path / "shards" / split) == {"en_activated": 6400}


def test_prompts_without_speech_without_text_and_without_recording_are_counted(prompts):
    why = reasons(asterisk.select(AsteriskConfig(root=prompts, languages=("it",)), 1))
    assert "is marked as no speech: '(silenzio)'" in why["it_IT_m_Carlo_silence_1"]
    assert "there is no audio file of 'missing'" in why["it_IT_m_Carlo_missing"]
    assert "text is empty" in why["it_IT_m_Carlo_no-text"]
    assert "beep.wav has no line there" in why["it_IT_m_Carlo_beep"]


def test_one_sentence_is_in_one_split(prompts):
    write_text(prompts / "en" / "core-sounds-en.txt", *(f"n{number}: Number {number % 10}." for number in range(40)))
    for number in range(40):
        write_noise(prompts / "en" / f"n{number}.wav", 0.3, rate_hz=8000)
    config = AsteriskConfig(root=prompts, languages=("en",), dev_fraction=0.3, test_fraction=0.3)
    selection = asterisk.select(config, 1)
    splits = {split: set(texts(selection, split).values()) for split in ("train", "dev", "test")}
    assert sum(len(sentences) for sentences in splits.values()) == 10
    assert len(of_split(selection, "train")) == 4 * len(splits["train"])


def test_a_language_without_list_or_recordings_is_named(prompts, tmp_path):
    with pytest.raises(DataError, match=r"There is no core-sounds-ru\.txt.*it has the lists of en, it"):
        asterisk.select(AsteriskConfig(root=prompts, languages=("ru",)), 1)
    write_text(prompts / "doc" / "core-sounds-ru.txt", "activated: Включено.")
    with pytest.raises(DataError, match="There are no recordings of ru"):
        asterisk.select(AsteriskConfig(root=prompts, languages=("ru",)), 1)
    with pytest.raises(DataError, match="It does not exist"):
        asterisk.select(AsteriskConfig(root=tmp_path / "nowhere"), 1)
