"""Phrases of the embedded corpus as utterances, for tests on real speech."""

import json

from paths import ROOT

from data.audio import Clip, Utterance

AELITA = ROOT / "data" / "embedded" / "aelita"


def phrase_rows() -> list[dict]:
    """The rows of phrases.jsonl: id, sentence, start_s, end_s and text of each phrase."""
    with (AELITA / "phrases.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def phrase_utterances(count: int) -> list[Utterance]:
    """The first phrases, of one speaker."""
    utterances = []
    for row in phrase_rows()[:count]:
        path = AELITA / "audio" / f"{row['sentence']}.opus"
        clip = Clip(path, row["start_s"], row["end_s"] - row["start_s"])
        utterances.append(Utterance(row["id"], (clip,), row["text"], "train", speaker="narrator", language="ru"))
    return utterances
