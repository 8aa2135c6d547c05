"""New sets of shards made of others: resharded, merged, sampled, filtered.

Audio and texts are copied as they are, never coded again; what is copied is compared with its checksum, or decoded
where a set has none. The sets that are read are not touched. Splits stay splits, and keys unique. shards.json of each
new split says under `lineage` of which sets it was made, by which command and from which content, and keeps the rules
under which the texts were normalised. A split appears when it is whole; the same command goes on where it was stopped,
and is refused (`DataError`) where something else stands in its place.
"""

import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.audio import Clip, Utterance, is_key_character
from data.errors import DataError
from data.seeds import derive_seed
from data.shard_tools.survey import OnProgress
from data.shards.index import SUMMARY, ShardIndex, find_splits, read_index, read_summary
from data.shards.reader import EncodedExample, ShardReader, undecodable
from data.shards.writer import Flac, SplitReport, SplitWriter, partial_folder, read_report

logger = logging.getLogger(__name__)

# Keys that a message names.
NAMED = 5


@dataclass(frozen=True)
class Candidate:
    """An utterance of a set that is read: its row of transcripts.jsonl and its length."""

    split: str
    key: str
    text: str
    speaker: str
    language: str
    seconds: float


Choose = Callable[[Sequence[Candidate]], Sequence[bool]]
"""Which utterances of a split go into the new set."""


@dataclass(frozen=True)
class Command:
    """What is done, as the lineage records it: the name of the command and its settings, which decide the result.

    `seed` shuffles each new split; None leaves the order of the set that is read. `choose` is None where all
    utterances are taken. `prefixes` are put before the keys of each set, in the order of the sets.
    """

    name: str
    settings: Mapping[str, Any]
    shard_seconds: float
    seed: int | None = None
    choose: Choose | None = None
    prefixes: Sequence[str] = ()


@dataclass(frozen=True)
class _Source:
    """One split of one of the sets that are read."""

    index: ShardIndex
    summary: dict[str, Any]
    candidates: list[Candidate]
    prefix: str


@dataclass(frozen=True)
class RewriteReport:
    """The new splits by name, and those that were there already, made by the same command of the same sets."""

    splits: dict[str, SplitReport]
    kept: tuple[str, ...]


def rewrite(
    folders: Sequence[Path],
    out_dir: Path,
    command: Command,
    only_splits: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> RewriteReport:
    """Make a new set at `out_dir` of the sets at `folders`, each a split or a folder of splits.

    DataError when a set cannot be read, when sets do not go together, when keys clash, when nothing is chosen, or when
    something else stands at `out_dir`. `only_splits` names the splits to make; none: all.
    """
    _check_places(folders, out_dir)
    sources = _read_sources(folders, command.prefixes, only_splits)
    reports: dict[str, SplitReport] = {}
    kept: list[str] = []
    # All of them before anything is written.
    for split, sources_of_split in sources.items():
        _check_together(split, sources_of_split)
    for split, sources_of_split in sources.items():
        lineage = _lineage(command, sources_of_split)
        made_from = hashlib.sha256(json.dumps(lineage, sort_keys=True).encode()).hexdigest()
        folder = out_dir / split
        if folder.exists():
            if not (folder / SUMMARY).is_file() or read_summary(folder).get("made_from") != made_from:
                raise DataError(
                    f"{folder} is already there, and was not made by this command of these sets. Choose another "
                    "folder, or remove it."
                )
            read_index(folder)
            reports[split] = read_report(folder)
            kept.append(split)
            continue
        members = _choose(command, split, sources_of_split)
        if not members:
            logger.warning("No utterance of %s is chosen: there will be no such split.", split)
            continue
        _write(folder, members, sources_of_split, command, lineage, made_from, on_progress)
        reports[split] = read_report(folder)
    if not reports:
        raise DataError(
            f"Nothing is left for {out_dir}: no utterance of {', '.join(sources)} is chosen. Look at the sets with "
            "`chorus shards stats`, and choose otherwise."
        )
    return RewriteReport(reports, tuple(kept))


def _check_places(folders: Sequence[Path], out_dir: Path) -> None:
    """Refuse an output in the sets that are read, or around them."""
    # Unlike Path.resolve it takes links that lead around in a circle for what they are: nothing that can be read.
    out = Path(os.path.realpath(out_dir))
    for folder in folders:
        source = Path(os.path.realpath(folder))
        if out == source or source in out.parents or out in source.parents:
            raise DataError(
                f"The new set would be written to {out_dir}, which is {folder} or lies in or around it; what is read "
                "is never touched. Choose another folder."
            )


def _read_sources(
    folders: Sequence[Path], prefixes: Sequence[str], only_splits: Sequence[str]
) -> dict[str, list[_Source]]:
    """The splits of all sets by their names, each with the sets that have it."""
    if prefixes and len(prefixes) != len(folders):
        raise DataError(f"There are {len(folders)} sets and {len(prefixes)} prefixes: give one for each set.")
    for prefix in prefixes:
        if not prefix or not all(map(is_key_character, prefix)):
            raise DataError(f"The prefix {prefix!r} has characters other than letters, digits, _ and -.")
    sources: dict[str, list[_Source]] = {}
    for number, folder in enumerate(folders):
        for split, place in find_splits(folder.absolute()).items():
            if only_splits and split not in only_splits:
                continue
            index = read_index(place)
            candidates: list[Candidate] = []
            for row, samples in zip(index.rows(), index.samples.tolist(), strict=True):
                candidate = Candidate(
                    split=split,
                    key=row["key"],
                    text=row["text"],
                    speaker=row["speaker"],
                    language=row["language"],
                    seconds=samples / index.sample_rate_hz,
                )
                candidates.append(candidate)
            prefix = f"{prefixes[number]}-" if prefixes else ""
            source = _Source(index, read_summary(place), candidates, prefix)
            sources.setdefault(split, []).append(source)
    missing = [split for split in only_splits if split not in sources]
    if missing:
        raise DataError(f"No set has a split {', '.join(missing)}.")
    return sources


def _check_together(split: str, sources: Sequence[_Source]) -> None:
    """Refuse sets of other rates, of texts that were normalised otherwise, or with keys in common."""
    first = sources[0]
    keys: Counter[str] = Counter()
    for source in sources:
        if source.index.sample_rate_hz != first.index.sample_rate_hz:
            raise DataError(
                f"Split {split} of {first.index.folder} is at {first.index.sample_rate_hz} Hz, that of "
                f"{source.index.folder} at {source.index.sample_rate_hz} Hz: prepare one of them again at the rate of "
                "the other (--sample-rate-hz)."
            )
        rules = source.summary.get("text_rules")
        if rules != first.summary.get("text_rules"):
            raise DataError(
                f"The texts of {first.index.folder} and of {source.index.folder} were normalised under other rules: "
                f"{json.dumps(first.summary.get('text_rules'))} and {json.dumps(rules)} (text_rules of shards.json). A "
                "model would learn two ways of writing. Prepare one of them again under the rules of the other, or "
                "train on both as a mixture, whose texts stay apart."
            )
        keys.update(source.prefix + candidate.key for candidate in source.candidates)
    clashing = sorted(key for key, count in keys.items() if count > 1)
    if clashing:
        names = ", ".join(clashing[:NAMED])
        raise DataError(
            f"{len(clashing)} keys of split {split} stand in more than one of the sets, such as {names}; keys must be "
            "unique. Give each set a prefix for its keys (--prefixes a,b), or leave one of the sets out if they hold "
            "the same recordings."
        )


def _lineage(command: Command, sources: Sequence[_Source]) -> dict[str, Any]:
    """What a split was made of, and how; sets that were made so themselves bring their own."""
    made_of: list[dict[str, Any]] = []
    for source in sources:
        parent: dict[str, Any] = {
            "folder": str(source.index.folder),
            "fingerprint": source.index.fingerprint,
            "utterances": len(source.index),
        }
        if source.prefix:
            parent["prefix"] = source.prefix
        if "lineage" in source.summary:
            parent["lineage"] = source.summary["lineage"]
        made_of.append(parent)
    settings = {**command.settings, "shard_seconds": command.shard_seconds, "seed": command.seed}
    return {"command": command.name, "settings": settings, "sources": made_of}


def _choose(command: Command, split: str, sources: Sequence[_Source]) -> list[tuple[int, int]]:
    """The utterances of a new split as (number of its source, position in it), in the order of the new split."""
    members: list[tuple[int, int]] = []
    for number, source in enumerate(sources):
        chosen: Sequence[bool] = [True] * len(source.candidates)
        if command.choose is not None:
            chosen = command.choose(source.candidates)
        for utterance in np.flatnonzero(chosen).tolist():
            members.append((number, utterance))
    if command.seed is None:
        return members
    # Sorted before they are shuffled, as where a split is prepared: the order of the sets does not matter.
    members.sort(key=lambda member: sources[member[0]].prefix + sources[member[0]].candidates[member[1]].key)
    generator = np.random.default_rng(derive_seed(command.seed, "shards", split))
    return [members[position] for position in generator.permutation(len(members))]


def _write(
    folder: Path,
    members: Sequence[tuple[int, int]],
    sources: Sequence[_Source],
    command: Command,
    lineage: dict[str, Any],
    made_from: str,
    on_progress: OnProgress | None,
) -> None:
    readers = [ShardReader(source.index, attempts=1) for source in sources]
    rate_hz = sources[0].index.sample_rate_hz
    try:
        with partial_folder(folder) as partial:
            with SplitWriter(partial, rate_hz, command.shard_seconds) as writer:
                for done, (number, utterance) in enumerate(members, 1):
                    source = sources[number]
                    candidate = source.candidates[utterance]
                    encoded = _fetch(readers[number], utterance, candidate)
                    row = Utterance(
                        source.prefix + candidate.key,
                        (Clip(Path(readers[number].shard(utterance))),),
                        candidate.text,
                        folder.name,
                        candidate.speaker,
                        candidate.language,
                    )
                    writer.add(row, Flac(encoded.flac, int(source.index.samples[utterance])))
                    if on_progress is not None:
                        on_progress(folder.name, done, len(members))
            # What the sets had rejected is theirs to tell.
            writer.write_summary(made_from, [], sources[0].summary.get("text_rules"), lineage)
    except OSError as error:
        raise DataError(
            f"Writing {folder} failed ({error}); make room or choose another place, then repeat."
        ) from error


def _fetch(reader: ShardReader, utterance: int, candidate: Candidate) -> EncodedExample:
    """The bytes of an utterance, which must be the one that transcripts.jsonl has. UtteranceError when it is not."""
    encoded = reader.fetch(utterance)
    if encoded.key != candidate.key:
        raise reader.broken(utterance, f"its bytes are those of {encoded.key}", candidate.key)
    for name in ("text", "speaker", "language"):
        if encoded.label[name] != getattr(candidate, name):
            raise reader.broken(utterance, f"its {name} is not that of transcripts.jsonl", candidate.key)
    if reader.index.crc32 is None:
        # Sets of earlier versions: whether the bytes are those that were written, decoding has to tell.
        reader.decode(utterance, encoded)
        return encoded
    try:
        header = soundfile.info(io.BytesIO(encoded.flac))
    except soundfile.SoundFileError as error:
        raise reader.broken(utterance, undecodable(error), candidate.key) from error
    if header.format != "FLAC":
        raise reader.broken(utterance, f"it is a {header.format} under the name of a FLAC", candidate.key)
    if header.frames != reader.index.samples[utterance] or header.samplerate != reader.index.sample_rate_hz:
        raise reader.broken(utterance, f"it holds {header.frames} samples at {header.samplerate} Hz", candidate.key)
    return encoded
