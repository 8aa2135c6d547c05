"""Write a corpus as shards: OUT_DIR/SPLIT for every split, `corpus.json` and `rejected.jsonl` beside them.

A split that is already there and was made from the same utterances and recordings is kept, and of one that is not whole
its finished shards, so that an interrupted preparation is completed by repeating it. Rejected rows are tried again: a
split is made again when their recordings were repaired. Refused, with a `DataError`: a folder that holds the shards of
something else, unless `replace`.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from data.audio import RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig
from data.corpora.finished import REJECTED, finished_splits
from data.corpora.registry import select
from data.corpora.rejections import describe_rejections
from data.files import replacing
from data.rejected_rows import RejectedRows
from data.shards.index import FORMAT, SplitReport, read_report, read_summary
from data.shards.sources import describe, write_sources
from data.shards.writer import EmptySplitError, OnProgress, write_split

# Recordings of rejected rows whose repair is noticed: what is remembered of each takes a few hundred bytes.
MAX_WATCHED = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` wrote: the splits by name, those that it did not have to make, and every rejected row.

    `rows` counts what the corpus lists: `rows` = `used` + rejected rows. `fingerprint` is a SHA-256 over the bytes of
    all shards: equal fingerprints are equal training data.
    """

    folder: Path
    splits: dict[str, SplitReport]
    kept: tuple[str, ...]
    rows: int
    rejected: RejectedRows
    fingerprint: str

    def account(self) -> str:
        """Where the rows went, in one line, with the first reasons of those that were rejected."""
        rows = f"{self.rows} {'row' if self.rows == 1 else 'rows'} in: {self.used} used"
        return f"{rows}, {describe_rejections(self.rejected)}"

    @property
    def used(self) -> int:
        """The number of utterances in all splits."""
        return sum(split.utterances for split in self.splits.values())


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
    """Write every split of a corpus into `out_dir`; `replace` removes the shards of another corpus, and those of
    recordings that changed, first. A split of which nothing can be decoded is left out, its rows are rejected. Raises
    DataError when the corpus cannot be read, when nothing at all can be decoded, or when `out_dir` holds other shards
    and `replace` is not set.
    """
    selection = select(config, seed)
    splits: dict[str, list[Utterance]] = {}
    for utterance in selection.utterances:
        splits.setdefault(utterance.split, []).append(utterance)

    shape = {"sample_rate_hz": sample_rate_hz, "shard_seconds": config.shard_seconds, "seed": seed}
    kept = finished_splits(out_dir, splits, shape, replace)
    reports: dict[str, SplitReport] = {}
    rows = len(selection.utterances) + len(selection.rejected)
    rejected = selection.rejected
    unusable: list[EmptySplitError] = []
    for split, utterances in splits.items():
        if split in kept:
            reports[split] = read_report(out_dir / split)
            rejected.extend(reports[split].rejected)
            continue
        try:
            reports[split] = write_split(
                utterances,
                out_dir / split,
                **shape,
                workers=workers,
                on_progress=on_progress,
                text_rules=config.text_rules,
            )
            rejected.extend(reports[split].rejected)
        # One broken recording may be all that a split has, and must not keep the others from being written.
        except EmptySplitError as error:
            logger.warning("There will be no split %s. %s", split, error)
            unusable.append(error)
            rejected.extend(_with_paths(error.rejected, utterances))
    if not reports:
        raise unusable[0]

    report = PrepareReport(
        folder=out_dir,
        splits=reports,
        kept=kept,
        rows=rows,
        rejected=rejected,
        fingerprint=_fingerprint(out_dir, reports),
    )
    assert report.rows == report.used + len(report.rejected), "a row of the corpus was lost"
    _write_records(report, config, seed=seed, sample_rate_hz=sample_rate_hz)
    return report


def _with_paths(rejected: list[RejectedRow], utterances: list[Utterance]) -> list[RejectedRow]:
    """Rows of a split that there will not be, with their recordings, which no split records, and may be repaired."""
    path_of_key = {utterance.key: str(utterance.clips[0].path.absolute()) for utterance in utterances}
    return [replaced(row, path=path_of_key[row.key]) for row in rejected]


def _fingerprint(out_dir: Path, splits: Iterable[str]) -> str:
    # By name, so that the order in which the corpus lists its splits does not matter.
    sha256s: dict[str, list[str]] = {}
    for split in sorted(splits):
        shards = read_summary(out_dir / split)["shards"]
        sha256s[split] = [shard["sha256"] for shard in shards]
    return hashlib.sha256(json.dumps(sha256s).encode()).hexdigest()


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
        "rows": report.rows,
        "rejected": len(report.rejected),
        "text_rules": config.text_rules,
    }

    with (
        replacing(report.folder / REJECTED) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for row in report.rejected:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
    # Those of rows that no split knows: one that appears, or is repaired, is tried again.
    paths: set[str] = set()
    for row in report.rejected:
        if row.path:
            paths.add(row.path)
        if len(paths) == MAX_WATCHED:
            logger.warning(
                "Of the recordings of rejected rows, %d are watched; prepare with --replace after repairing others.",
                MAX_WATCHED,
            )
            break
    write_sources(report.folder, [describe(Path(path), with_content=False) for path in paths])
    with replacing(report.folder / "corpus.json") as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
