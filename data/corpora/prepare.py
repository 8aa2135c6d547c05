"""Write a corpus as shards: OUT_DIR/SPLIT for every split, `corpus.json` and `rejected.jsonl` beside them.

A split that is already there and was made from the same utterances is kept, so an interrupted preparation
is completed by repeating it. Refused, with a `DataError`: a folder that holds the shards of something else,
unless `replace`.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.audio import RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig
from data.corpora.registry import select
from data.errors import DataError
from data.files import replacing
from data.shard_index import FORMAT, SUMMARY, SplitReport, read_index, read_report, read_summary
from data.shards import OnProgress, fingerprint, write_split


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` wrote: the splits by name, those that it did not have to make, and every rejected row.

    `fingerprint` is a SHA-256 over the bytes of all shards: equal fingerprints are equal training data.
    """

    folder: Path
    splits: dict[str, SplitReport]
    kept: tuple[str, ...]
    rejected: tuple[RejectedRow, ...]
    fingerprint: str


def prepare(
    config: BaseCorpusConfig,
    out_dir: Path,
    *,
    seed: int,
    sample_rate_hz: int = 16000,
    workers: int = 1,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> PrepareReport:
    """Write every split of a corpus into `out_dir`; `replace` removes the shards of another corpus there
    first. Raises DataError when the corpus cannot be read, when nothing of a split can be decoded, or when
    `out_dir` holds other shards and `replace` is not set.
    """
    selection = select(config, seed)
    splits: dict[str, list[Utterance]] = {}
    for utterance in selection.utterances:
        splits.setdefault(utterance.split, []).append(utterance)

    shape = {"sample_rate_hz": sample_rate_hz, "shard_seconds": config.shard_seconds, "seed": seed}
    made_from = {split: fingerprint(utterances, **shape) for split, utterances in splits.items()}
    kept = _finished_splits(out_dir, made_from, replace)
    for split, utterances in splits.items():
        if split not in kept:
            write_split(utterances, out_dir / split, **shape, workers=workers, on_progress=on_progress)

    reports: dict[str, SplitReport] = {}
    rejected = list(selection.rejected)
    for split in splits:
        reports[split] = read_report(out_dir / split)
        rejected += reports[split].rejected
    rejected.sort(key=lambda row: (row.line, row.key))

    # By name, so that the order in which the corpus lists its splits does not matter.
    sha256s: dict[str, list[str]] = {}
    for split in sorted(splits):
        shards = read_summary(out_dir / split)["shards"]
        sha256s[split] = [shard["sha256"] for shard in shards]
    report = PrepareReport(
        folder=out_dir,
        splits=reports,
        kept=kept,
        rejected=tuple(rejected),
        fingerprint=hashlib.sha256(json.dumps(sha256s).encode()).hexdigest(),
    )
    _write_records(report, config, seed=seed, sample_rate_hz=sample_rate_hz)
    return report


def _finished_splits(out_dir: Path, made_from: dict[str, str], replace: bool) -> tuple[str, ...]:
    """The splits that are there already; other shards are removed when `replace`, refused if not."""
    if not out_dir.is_dir():
        return ()
    finished: list[str] = []
    for folder in sorted(out_dir.iterdir()):
        if not (folder / SUMMARY).is_file():
            continue
        # Whole by its own records, and made of what would be written now.
        problem = ""
        try:
            read_index(folder)
            if read_summary(folder).get("made_from") != made_from.get(folder.name):
                problem = "it was made from something else"
        except DataError as error:
            problem = str(error)

        if not problem:
            finished.append(folder.name)
        elif replace:
            shutil.rmtree(folder)
        else:
            raise DataError(
                f"{folder} is not what this corpus, seed and sample rate give ({problem}); "
                "choose another folder, or have its shards replaced."
            )
    return tuple(finished)


def _write_records(report: PrepareReport, config: BaseCorpusConfig, *, seed: int, sample_rate_hz: int) -> None:
    """`corpus.json`: configuration, counts and fingerprint; `rejected.jsonl`: one line per rejected row."""
    splits: dict[str, dict[str, Any]] = {}
    for name, split in report.splits.items():
        splits[name] = {
            "utterances": split.utterances,
            "hours": split.seconds / 3600,
            "shards": split.shards,
            "bytes": split.bytes,
            "rejected": len(split.rejected),
        }
    record = {
        "format": FORMAT,
        "fingerprint": report.fingerprint,
        "corpus": config.model_dump(mode="json"),
        "seed": seed,
        "sample_rate_hz": sample_rate_hz,
        "splits": splits,
        "rejected": len(report.rejected),
    }

    with (
        replacing(report.folder / "rejected.jsonl") as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for row in report.rejected:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
    with replacing(report.folder / "corpus.json") as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
