"""The audio and the text of one utterance of a set, as files that anything plays and shows."""

from pathlib import Path

import soundfile

from data.errors import DataError
from data.files import replacing
from data.shards.index import find_splits, read_index
from data.shards.reader import ShardReader


def play(folder: Path, key: str, audio_file: Path) -> tuple[Path, Path]:
    """Write the audio of an utterance, as WAV or FLAC by the name of the file, and its text beside it as .txt.

    `key` is KEY, or SPLIT/KEY where several splits have it. Returns both paths. DataError when there is no such
    utterance, when it is broken, or when something stands at one of the paths.
    """
    formats = {".wav": "WAV", ".flac": "FLAC"}
    if audio_file.suffix.lower() not in formats:
        raise DataError(f"{audio_file} is neither a .wav nor a .flac file: name one (--out).")

    wanted_split, _, name = key.rpartition("/")
    places: list[tuple[str, ShardReader, int]] = []
    for split, place in find_splits(folder.absolute()).items():
        if wanted_split in ("", split):
            # A shard that is missing is no reason not to hear the others.
            index = read_index(place, check_shards=False)
            for utterance, other in enumerate(index.keys()):
                if other == name:
                    places.append((split, ShardReader(index, attempts=1), utterance))
    if not places:
        raise DataError(f"No utterance of {folder} has the key {key}; transcripts.jsonl of its splits lists the keys.")
    if len(places) > 1:
        choices = ", ".join(f"{split}/{name}" for split, _, _ in places)
        raise DataError(f"Several utterances of {folder} have the key {name}: choose one of {choices}.")

    _, reader, utterance = places[0]
    example = reader.read(utterance)
    text_file = audio_file.with_suffix(".txt")
    for path in (audio_file, text_file):
        if path.exists():
            raise DataError(f"{path} is already there; name another file (--out).")
    with replacing(audio_file, durable=False) as temporary:
        soundfile.write(
            temporary,
            example.waveform,
            reader.index.sample_rate_hz,
            format=formats[audio_file.suffix.lower()],
            subtype="PCM_16",
        )
    with replacing(text_file, durable=False) as temporary:
        temporary.write_text(example.text + "\n", encoding="utf-8")
    return audio_file, text_file
