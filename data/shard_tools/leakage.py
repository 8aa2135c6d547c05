"""What stands twice: recordings within a split, and recordings, sentences and speakers in two splits."""

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations

from data.shard_tools.findings import Finding, Item, collect
from data.shard_tools.survey import Row, Survey
from data.text.transcripts import split_key

# Speakers count as held out where at most this share of the smaller split's are in the other one too: a corpus whose
# speakers are in all splits by design is not to be warned of.
MAX_LEAKED_SPEAKERS = 0.5
# Keys that are named of one recording, sentence or speaker, and characters of a text.
MAX_KEYS = 20
MAX_QUOTED = 80


def check_duplicates(survey: Survey) -> list[Finding]:
    """Recordings that stand several times in a split, with one text or with several."""
    duplicated: list[Item] = []
    contradicting: list[Item] = []
    for rows in _rows_by_audio(survey).values():
        if len(rows) < 2:
            continue
        keys = tuple(row.key for row in rows)
        texts = {split_key(row.text) for row in rows}
        if len(texts) == 1:
            duplicated.append(Item(keys, f"{_listed(keys)} are one recording"))
        else:
            quoted: list[str] = []
            for row in rows[:MAX_KEYS]:
                beginning = row.text[:MAX_QUOTED]
                quoted.append(f"{row.key} {beginning!r}")
            contradicting.append(Item(keys, f"one recording: {', '.join(quoted)}"))
    findings = collect("duplicate-audio", survey.split, duplicated)
    findings += collect("contradicting-text", survey.split, contradicting)
    return findings


def check_leakage(surveys: Sequence[Survey], held_out_speakers: bool = False) -> list[Finding]:
    """What two splits share. With `held_out_speakers` every shared speaker is a finding, however many there are."""
    audio = [_rows_by_audio(survey) for survey in surveys]
    texts: list[dict[Hashable, list[Row]]] = []
    speakers: list[dict[Hashable, list[Row]]] = []
    for survey in surveys:
        rows_of_text: dict[Hashable, list[Row]] = {}
        rows_of_speaker: dict[Hashable, list[Row]] = {}
        for row in survey.rows:
            if row.text.strip():
                rows_of_text.setdefault(split_key(row.text), []).append(row)
            if row.speaker:
                rows_of_speaker.setdefault(row.speaker, []).append(row)
        texts.append(rows_of_text)
        speakers.append(rows_of_speaker)

    findings: list[Finding] = []
    for first, second in combinations(range(len(surveys)), 2):
        names = (surveys[first].split, surveys[second].split)
        pair = "+".join(names)
        leaked_audio: list[Item] = []
        for _, keys in _shared(names, audio[first], audio[second]):
            leaked_audio.append(Item(keys, f"{_listed(keys)} are one recording"))
        findings += collect("leaked-audio", pair, leaked_audio)

        leaked_texts: list[Item] = []
        for text, keys in _shared(names, texts[first], texts[second]):
            beginning = str(text)[:MAX_QUOTED]
            leaked_texts.append(Item(keys, f"{beginning!r}: {_listed(keys)}"))
        findings += collect("leaked-text", pair, leaked_texts)

        leaked_speakers: list[Item] = []
        for speaker, keys in _shared(names, speakers[first], speakers[second]):
            leaked_speakers.append(Item(keys, f"speaker {speaker}: {_listed(keys)}"))
        smaller = min(len(speakers[first]), len(speakers[second]))
        if held_out_speakers or len(leaked_speakers) <= MAX_LEAKED_SPEAKERS * smaller:
            findings += collect("leaked-speaker", pair, leaked_speakers)
    return findings


def _listed(keys: Sequence[str]) -> str:
    """The first of the keys, and how many there are beside them."""
    names = ", ".join(keys[:MAX_KEYS])
    others = len(keys) - MAX_KEYS
    if others > 0:
        names += f" and {others} more"
    return names


def _rows_by_audio(survey: Survey) -> dict[Hashable, list[Row]]:
    rows: dict[Hashable, list[Row]] = {}
    for row, measures in survey.measured():
        # Digital silence is a finding of its own, and every other silence its duplicate.
        if measures.speech_s > 0:
            rows.setdefault(measures.digest, []).append(row)
    return rows


def _shared(
    names: tuple[str, str], first: dict[Hashable, list[Row]], second: dict[Hashable, list[Row]]
) -> Iterator[tuple[Hashable, tuple[str, ...]]]:
    """What both splits have, with the utterances that have it as SPLIT/KEY."""
    first_name, second_name = names
    for value, rows in first.items():
        if value not in second:
            continue
        keys = [f"{first_name}/{row.key}" for row in rows]
        keys += [f"{second_name}/{row.key}" for row in second[value]]
        yield value, tuple(keys)
