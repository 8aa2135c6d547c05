"""New sets of shards whose texts a model wrote: OUT_DIR/SPLIT for every split of a set.

Audio is copied as it is. Texts are written shard by shard and kept in OUT_DIR/labels, so that the same command goes on
where it was stopped, and a set with other filters costs no model again. Filters drop what the model is not sure of, or
what differs too much from the set's own transcripts or from a second model's texts; what is dropped is counted by
reason and listed in OUT_DIR/rejected.jsonl. shards.json of a split says under `lineage` which model wrote the texts,
from which shards, under which settings.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from data.audio import Clip, RejectedRow, Utterance
from data.errors import DataError
from data.files import parse_json, read_lines, replacing
from data.shards.index import MAX_ROW_BYTES, SUMMARY, ShardIndex, find_splits, read_index, read_report, read_summary
from data.shards.partial_folder import partial_folder
from data.shards.reader import ShardReader, UtteranceError
from data.shards.writer import Flac, SplitWriter
from data.text.transcripts import RULES_VERSION, normalize_text
from launcher.inference.labellers import Label, Labeller

REJECTED = "rejected.jsonl"
LABELS = "labels"
# The set's own transcripts take the place of a second model.
TRANSCRIPTS = "transcripts"

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Filters:
    """Which labels are used; what is None filters nothing. Error rates are those against the texts compared with."""

    min_confidence: float | None = None
    max_cer: float | None = None
    max_wer: float | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class TextRules:
    """The rules of `data.text.transcripts` under which labels, and what they are compared with, are normalised."""

    normalize: str = "lower"
    punctuation: str = "remove"
    language: str = ""

    def apply(self, text: str, language: str) -> str:
        return normalize_text(
            text,
            lower=self.normalize == "lower",
            punctuation=self.punctuation == "keep",
            language=language or self.language,
        )

    def as_dict(self) -> dict[str, Any]:
        return {"version": RULES_VERSION, **asdict(self)}


@dataclass(frozen=True)
class NamedLabeller:
    """A model with what the lineage says of it: its folder and the SHA-256 of what is in it."""

    labeller: Labeller
    folder: str
    sha256: str

    def as_dict(self) -> dict[str, str]:
        return {"folder": self.folder, "sha256": self.sha256}


@dataclass(frozen=True)
class Task:
    """What is to be done: the model, what its texts are compared with (a second model, TRANSCRIPTS, or nothing), the
    rules, the filters, `batch_seconds` of padded audio at a time, and the shape of the new shards."""

    model: NamedLabeller
    compared: NamedLabeller | str | None
    rules: TextRules
    filters: Filters
    batch_seconds: float
    shard_seconds: float
    language: str = ""


@dataclass(frozen=True)
class SplitLabels:
    """A new split: what it holds, and how many utterances were dropped for each reason."""

    utterances: int
    seconds: float
    shards: int
    dropped: dict[str, int]
    kept: bool


@dataclass(frozen=True)
class _Row:
    """What was written of one utterance, before any filter: texts as the models wrote them."""

    key: str
    text: str
    confidence: float
    ended: bool
    compared: str | None
    problem: str = ""


@dataclass(frozen=True)
class _Dropped:
    """An utterance that is not used: the kind of reason, and the reason."""

    kind: str
    reason: str


def write_pseudo_labels(
    shards: Path, out_dir: Path, task: Task, splits: Sequence[str] = (), on_progress: OnProgress = lambda *_: None
) -> dict[str, SplitLabels]:
    """Make a set at `out_dir` of the set at `shards`, a split or a folder of splits; none of `splits` means all.

    DataError when the set cannot be read, something else stands at `out_dir`, or no utterance is left.
    """
    places = find_splits(shards.absolute())
    missing = [split for split in splits if split not in places]
    if missing:
        raise DataError(f"{shards} has no split {', '.join(missing)}; it has {', '.join(places)}.")
    source = shards.resolve()
    out = out_dir.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise DataError(
            f"The new set would be written to {out_dir}, which is {shards} or lies in or around it; what is read is "
            "never touched. Choose another folder (--out)."
        )
    reports = {}
    listed: list[dict[str, Any]] = []
    for split, place in places.items():
        if splits and split not in splits:
            continue
        labelled = _Split(place, out_dir / split, task, on_progress)
        report, rejected = labelled.write()
        listed += rejected
        if report is not None:
            reports[split] = report
    with replacing(out_dir / REJECTED) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in listed:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if not reports:
        raise DataError(
            f"No utterance of {shards} is left: {_counts(listed)}. {out_dir / REJECTED} says why of each. Loosen the "
            "filters; the texts are kept, so the model does not run again."
        )
    return reports


def _counts(listed: Sequence[dict[str, Any]]) -> str:
    counts = Counter(row["kind"] for row in listed)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "it has none"


class _Split:
    """One split on its way to a new one."""

    def __init__(self, place: Path, folder: Path, task: Task, on_progress: OnProgress):
        self.folder = folder
        self.task = task
        self.on_progress = on_progress
        self.index: ShardIndex = read_index(place)
        self.summary = read_summary(place)
        self.reader = ShardReader(self.index, attempts=1)
        self.rows = list(self.index.rows())
        compared = task.compared
        if isinstance(compared, NamedLabeller):
            compared = compared.as_dict()
        # All that decides what the models write; filters and rules come after it.
        self.written_by = {
            "model": task.model.as_dict(),
            "compared": compared,
            "language": task.language,
            "batch_seconds": task.batch_seconds,
            "max_seconds": task.filters.max_seconds,
            "source": self.index.fingerprint,
        }
        self.lineage = self._lineage()

    def _lineage(self) -> dict[str, Any]:
        parent: dict[str, Any] = {
            "folder": str(self.index.folder),
            "fingerprint": self.index.fingerprint,
            "utterances": len(self.index),
        }
        if "lineage" in self.summary:
            parent["lineage"] = self.summary["lineage"]
        settings = {
            "filters": asdict(self.task.filters),
            "text_rules": self.task.rules.as_dict(),
            "language": self.task.language,
            "batch_seconds": self.task.batch_seconds,
            "shard_seconds": self.task.shard_seconds,
        }
        return {
            "command": "pseudo-label",
            "settings": settings,
            "model": self.written_by["model"],
            "compared_with": self.written_by["compared"],
            "sources": [parent],
        }

    def write(self) -> tuple[SplitLabels | None, list[dict[str, Any]]]:
        """Write the split, unless it is there; the report, None where nothing is left, and what was dropped."""
        made_from = _sha256(self.lineage)
        is_there = self.folder.exists()
        if is_there and (
            not (self.folder / SUMMARY).is_file() or read_summary(self.folder).get("made_from") != made_from
        ):
            raise DataError(
                f"{self.folder} is already there, and was not made by this command of these shards. Choose another "
                "folder (--out), or remove it."
            )
        if is_there:
            report = read_report(self.folder)
            dropped = read_summary(self.folder)["lineage"]["dropped"]
            listed = [row for row in _read_listed(self.folder.parent) if row["split"] == self.folder.name]
            return SplitLabels(report.utterances, report.seconds, report.shards, dropped, kept=True), listed
        # Read from the disk where they are written already.
        written: list[_Row] = []
        for shard in range(len(self.summary["shards"])):
            written += self._labels_of(shard)

        texts: dict[int, str] = {}
        rejected: list[RejectedRow] = []
        listed: list[dict[str, Any]] = []
        kinds: Counter[str] = Counter()
        for position, row in enumerate(written):
            language = self.rows[position]["language"]
            text = self.task.rules.apply(row.text, language)
            dropped = self._why_dropped(row, text, language)
            if dropped is None:
                texts[position] = text
                continue
            kinds[dropped.kind] += 1
            rejected.append(RejectedRow(position + 1, dropped.reason, row.key))
            listed.append({"split": self.folder.name, "line": position + 1, **asdict(row), **asdict(dropped)})

        if not texts:
            return None, listed
        self._copy(texts, made_from, rejected, dict(kinds))
        report = read_report(self.folder)
        return SplitLabels(report.utterances, report.seconds, report.shards, dict(kinds), kept=False), listed

    def _labels_of(self, shard: int) -> list[_Row]:
        """The rows of a shard in the order of the index: read where they were written before."""
        name = f"{_sha256(self.written_by)[:12]}-{shard:06d}.jsonl"
        path = self.folder.parent / LABELS / self.folder.name / name
        positions = np.flatnonzero(self.index.shard == shard).tolist()
        rows = _read_rows(path)
        if [row.key for row in rows] == [self.rows[position]["key"] for position in positions]:
            return rows
        rows_by_position: dict[int, _Row] = {}
        first = positions[0] if positions else 0
        for batch in self._batches(positions):
            for position, row in zip(batch, self._write_batch(batch), strict=True):
                rows_by_position[position] = row
            done = first + len(rows_by_position)
            self.on_progress(self.folder.name, done, len(self.index))
        rows = [rows_by_position[position] for position in positions]
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        return rows

    def _batches(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """Utterances of like lengths together, at most `batch_seconds` of them with their padding."""
        samples = self.index.samples
        budget = self.task.batch_seconds * self.index.sample_rate_hz
        batch: list[int] = []
        # Longest first: what does not fit into memory is known at once. Of equal lengths, by their order.
        for position in sorted(positions, key=lambda position: (-int(samples[position]), position)):
            if batch and (len(batch) + 1) * int(samples[batch[0]]) > budget:
                yield batch
                batch = []
            batch.append(position)
        if batch:
            yield batch

    def _write_batch(self, positions: Sequence[int]) -> list[_Row]:
        """What the models write of some utterances, of which some may be unreadable or too long."""
        problems: dict[int, str] = {}
        waveforms: dict[int, np.ndarray] = {}
        longest_s = self._longest_s()
        for position in positions:
            seconds = int(self.index.samples[position]) / self.index.sample_rate_hz
            if seconds > longest_s:
                problems[position] = f"it lasts {seconds:.3g} s, and {longest_s:g} s are taken at most"
                continue
            try:
                waveforms[position] = self.reader.read(position).waveform
            except UtteranceError as error:
                problems[position] = f"it cannot be read: {error.reason}"
        labels = self._label(self.task.model, waveforms)
        compared: dict[int, str] = {}
        if isinstance(self.task.compared, NamedLabeller):
            for position, label in self._label(self.task.compared, waveforms).items():
                compared[position] = label.text
        elif self.task.compared == TRANSCRIPTS:
            for position in positions:
                compared[position] = self.rows[position]["text"]
        rows = []
        for position in positions:
            key = self.rows[position]["key"]
            label = labels.get(position, Label("", 0.0))
            problem = problems.get(position, "")
            rows.append(_Row(key, label.text, label.confidence, label.ended, compared.get(position), problem))
        return rows

    def _longest_s(self) -> float:
        """The longest utterance that the models hear as a whole, or that the filters let pass."""
        longest_s = self.task.model.labeller.max_seconds
        if isinstance(self.task.compared, NamedLabeller):
            longest_s = min(longest_s, self.task.compared.labeller.max_seconds)
        if self.task.filters.max_seconds is not None:
            longest_s = min(longest_s, self.task.filters.max_seconds)
        return longest_s

    def _label(self, model: NamedLabeller, waveforms: dict[int, np.ndarray]) -> dict[int, Label]:
        if not waveforms:
            return {}
        labels = model.labeller.label(list(waveforms.values()), self.index.sample_rate_hz)
        return dict(zip(waveforms, labels, strict=True))

    def _why_dropped(self, row: _Row, text: str, language: str) -> _Dropped | None:
        """Why a label is not used, None where it is."""
        filters = self.task.filters
        if row.problem.startswith("it lasts"):
            return _Dropped("too long", row.problem)
        if row.problem:
            return _Dropped("unreadable", row.problem)
        if not any(character.isalnum() for character in text):
            return _Dropped("nothing recognised", f"nothing is left of its text {row.text[:80]!r}")
        if not row.ended:
            return _Dropped("text without end", "the model wrote as much as it may, and did not end the text")
        if filters.min_confidence is not None and row.confidence < filters.min_confidence:
            return _Dropped(
                "low confidence", f"its confidence is {row.confidence:.3f}, below {filters.min_confidence:g}"
            )
        # A row without a transcript has nothing to be compared with.
        if not row.compared and self.task.compared in (TRANSCRIPTS, None):
            return None
        reference = self.task.rules.apply(row.compared or "", language)
        for unit, largest, rate_of in (
            ("characters", filters.max_cer, jiwer.cer),
            ("words", filters.max_wer, jiwer.wer),
        ):
            if largest is None:
                continue
            # Nothing was said, by the other: then all of the text is an error.
            rate = float("inf")
            if reference:
                rate = rate_of(reference, text)
            if rate > largest:
                return _Dropped(
                    "differs", f"its error rate in {unit} is {rate:.3f} against {reference[:80]!r}, above {largest:g}"
                )
        return None

    def _copy(self, texts: dict[int, str], made_from: str, rejected: list[RejectedRow], kinds: dict[str, int]) -> None:
        """Write the new split: the audio as it is, with the new texts."""
        try:
            with partial_folder(self.folder) as partial:
                with SplitWriter(partial, self.index.sample_rate_hz, self.task.shard_seconds) as writer:
                    for position, text in texts.items():
                        row = self.rows[position]
                        encoded = self.reader.fetch(position)
                        utterance = Utterance(
                            row["key"],
                            (Clip(Path(self.reader.shard(position))),),
                            text,
                            self.folder.name,
                            row["speaker"],
                            row["language"] or self.task.language,
                        )
                        writer.add(utterance, Flac(encoded.flac, int(self.index.samples[position])))
                lineage = {**self.lineage, "dropped": kinds}
                writer.write_summary(made_from, rejected, self.task.rules.as_dict(), lineage)
        except OSError as error:
            raise DataError(
                f"Writing {self.folder} failed ({error}); make room or choose another place, then repeat. The texts "
                "are kept."
            ) from error


def _read_rows(path: Path) -> list[_Row]:
    """The rows of a file of labels; none where there is none, or it is not what was written."""
    rows = []
    try:
        for line in read_lines(path, MAX_ROW_BYTES):
            rows.append(_Row(**parse_json(line)))
    except (OSError, ValueError, TypeError):
        return []
    return rows


def _read_listed(out_dir: Path) -> list[dict[str, Any]]:
    """What an earlier command listed as dropped; nothing where the file is gone."""
    try:
        return [parse_json(line) for line in read_lines(out_dir / REJECTED, MAX_ROW_BYTES)]
    except (OSError, ValueError):
        return []


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
