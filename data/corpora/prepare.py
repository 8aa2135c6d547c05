"""Write a corpus as shards: OUT_DIR/SPLIT for every split, `corpus.json` and `rejected.jsonl` beside them.

A split that is already there and was made from the same utterances and recordings is kept, so an interrupted
preparation is completed by repeating it. Rejected rows are tried again: a split is made again when their recordings
were repaired. Refused, with a `DataError`: a folder that holds the shards of something else, unless `replace`.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from data.audio import RejectedRow, Utterance, read_audio
from data.corpora.corpus import BaseCorpusConfig
from data.corpora.registry import select
from data.corpora.rejections import describe_rejections
from data.errors import DataError
from data.files import parse_json, replacing
from data.shard_index import FORMAT, SUMMARY, SplitReport, read_index, read_report, read_summary
from data.shards import EmptySplitError, OnProgress, fingerprint, write_split
from data.sources import SOURCES, Source, changed_sources, describe, read_sources, write_sources

REJECTED = "rejected.jsonl"

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
    rejected: tuple[RejectedRow, ...]
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
    kept = _finished_splits(out_dir, splits, shape, replace)
    reports: dict[str, SplitReport] = {}
    rejected = list(selection.rejected)
    unusable: list[EmptySplitError] = []
    for split, utterances in splits.items():
        try:
            if split in kept:
                reports[split] = read_report(out_dir / split)
            else:
                reports[split] = write_split(
                    utterances,
                    out_dir / split,
                    **shape,
                    workers=workers,
                    on_progress=on_progress,
                    text_rules=config.text_rules,
                )
            rejected += reports[split].rejected
        # One broken recording may be all that a split has, and must not keep the others from being written.
        except EmptySplitError as error:
            logger.warning("There will be no split %s. %s", split, error)
            unusable.append(error)
            path_of_key = {utterance.key: str(utterance.clips[0].path.absolute()) for utterance in utterances}
            # No split records these recordings, of which one may be repaired.
            for row in error.rejected:
                rejected.append(replaced(row, path=path_of_key[row.key]))
    if not reports:
        raise unusable[0]
    rejected.sort(key=lambda row: (row.line, row.key))

    # By name, so that the order in which the corpus lists its splits does not matter.
    sha256s: dict[str, list[str]] = {}
    for split in sorted(reports):
        shards = read_summary(out_dir / split)["shards"]
        sha256s[split] = [shard["sha256"] for shard in shards]
    report = PrepareReport(
        folder=out_dir,
        splits=reports,
        kept=kept,
        rows=len(selection.utterances) + len(selection.rejected),
        rejected=tuple(rejected),
        fingerprint=hashlib.sha256(json.dumps(sha256s).encode()).hexdigest(),
    )
    assert report.rows == report.used + len(report.rejected), "a row of the corpus was lost"
    _write_records(report, config, seed=seed, sample_rate_hz=sample_rate_hz)
    return report


def changed_recordings(out_dir: Path) -> list[str]:
    """The recordings that are not what they were when `prepare` wrote a folder: of used rows by their content, of
    rejected ones by their time too. Empty where nothing is known of them, as of shards of earlier versions.
    """
    paths: list[str] = []
    for folder in sorted({path.parent for path in out_dir.glob(f"*/{SOURCES}")} | {out_dir}):
        # Hidden folders are splits that are still being written.
        if not folder.name.startswith(".") or folder == out_dir:
            sources = read_sources(folder) or {}
            paths += [source.path for source, _ in changed_sources(sources.values())]
    return paths


def _finished_splits(
    out_dir: Path, splits: dict[str, list[Utterance]], shape: dict[str, Any], replace: bool
) -> tuple[str, ...]:
    """The splits that are there already. Those to be made again are removed: of something else only when `replace`,
    else refused, and those of which rejected rows were repaired."""
    if not out_dir.is_dir():
        return ()
    rejected_lines = _rejected_lines(out_dir)
    finished: list[str] = []
    for folder in sorted(out_dir.iterdir()):
        if not (folder / SUMMARY).is_file():
            continue
        # Whole by its own records, and made of what would be written now.
        problem = ""
        is_repaired = False
        try:
            read_index(folder)
            utterances = _listed_before(folder, splits.get(folder.name, []), shape, rejected_lines)
            if utterances is None:
                problem = "it was made from something else"
            else:
                problem, is_repaired = _recordings_problem(folder, utterances, shape["sample_rate_hz"], replace)
                # What was rejected before and is usable now is the one difference that needs no permission.
                is_repaired = is_repaired or len(utterances) < len(splits[folder.name])
        except DataError as error:
            problem = str(error)

        if problem and not replace:
            raise DataError(
                f"{folder} is not what this corpus, seed and sample rate give ({problem}); "
                "choose another folder, or have its shards replaced (--replace)."
            )
        if problem or is_repaired:
            shutil.rmtree(folder)
        else:
            finished.append(folder.name)
    return tuple(finished)


def _listed_before(
    folder: Path, utterances: list[Utterance], shape: dict[str, Any], rejected_lines: set[int]
) -> list[Utterance] | None:
    """The utterances that a split was made from: all, or those whose rows were not rejected; None for others."""
    made_from = read_summary(folder).get("made_from")
    if made_from == fingerprint(utterances, **shape):
        return utterances
    # Those whose audio was found broken only when it was decoded are part of what the split was made from.
    rejected_keys = {row.key for row in read_report(folder).rejected}
    before: list[Utterance] = []
    for utterance in utterances:
        if utterance.line not in rejected_lines or utterance.key in rejected_keys:
            before.append(utterance)
    if made_from == fingerprint(before, **shape):
        return before
    return None


def _rejected_lines(out_dir: Path) -> set[int]:
    """The lines of the rows that were rejected before; none where they are not recorded."""
    lines: set[int] = set()
    try:
        with (out_dir / REJECTED).open(encoding="utf-8") as file:
            for line in file:
                lines.add(parse_json(line)["line"])
    except (OSError, ValueError, KeyError, TypeError):
        # A split with more rows than before is then made from something else, as it is without the file.
        return set()
    return lines


def _recordings_problem(
    folder: Path, utterances: list[Utterance], sample_rate_hz: int, replace: bool
) -> tuple[str, bool]:
    """What is wrong with a split because its recordings changed, and whether rows that it rejected may be usable now.

    Where their content is what it was, what is recorded of them is brought up to date.
    """
    rejected_keys = {row.key for row in read_report(folder).rejected}
    used_paths: set[str] = set()
    for utterance in utterances:
        if utterance.key not in rejected_keys:
            used_paths |= {str(clip.path.absolute()) for clip in utterance.clips}

    recorded = read_sources(folder)
    if recorded is None:
        problem = _newer_recordings(folder, used_paths)
        if problem and not replace:
            logger.warning("%s: %s. The shards are kept; --replace makes them anew.", folder, problem)
            problem = ""
        rejected = [utterance for utterance in utterances if utterance.key in rejected_keys]
        return problem, any(_is_readable(utterance, sample_rate_hz) for utterance in rejected)

    sources = _where_they_are(recorded, utterances)
    changed = {source.path for source, _ in changed_sources(sources.values())}
    # With those of which nothing is recorded: the corpus is elsewhere, and its folders have another shape.
    changed_used = sorted(used_paths & changed | used_paths - sources.keys())
    if changed_used:
        return f"{len(changed_used)} of its {len(used_paths)} recordings changed, the first is {changed_used[0]}", False
    if not changed:
        now = [_seen_now(source) for source in sources.values()]
        if now != list(recorded.values()):
            write_sources(folder, now)
    return "", bool(changed)


def _seen_now(source: Source) -> Source:
    """A recording whose content is what it was, at the time that its file has now."""
    now = describe(Path(source.path), with_content=False)
    if now.num_bytes is None:
        return source
    return replaced(now, sha256=source.sha256)


def _newer_recordings(folder: Path, paths: Iterable[str]) -> str:
    """A sentence where recordings are newer than shards that do not know what they were, else empty."""
    made_ns = (folder / SUMMARY).stat().st_mtime_ns
    newer = sorted(path for path in paths if describe(Path(path), with_content=False).mtime_ns > made_ns)
    if not newer:
        return ""
    return (
        f"the shards do not record what their recordings were, and {len(newer)} of these are newer than the shards, "
        f"the first is {newer[0]}"
    )


def _where_they_are(sources: dict[str, Source], utterances: Iterable[Utterance]) -> dict[str, Source]:
    """The recordings as recorded, under the paths that they have in a corpus that was moved as a whole."""
    paths: set[str] = set()
    for utterance in utterances:
        paths |= {str(clip.path.absolute()) for clip in utterance.clips}
    if not paths or not sources or paths == sources.keys():
        return sources
    before = os.path.commonpath([os.path.dirname(path) for path in sources])
    after = os.path.commonpath([os.path.dirname(path) for path in paths])
    moved: dict[str, Source] = {}
    for source in sources.values():
        path = os.path.join(after, os.path.relpath(source.path, before))
        moved[path] = replaced(source, path=path)
    return moved


def _is_readable(utterance: Utterance, sample_rate_hz: int) -> bool:
    try:
        read_audio(utterance, sample_rate_hz)
    except DataError:
        return False
    return True


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
    paths = {row.path for row in report.rejected if row.path}
    write_sources(report.folder, [describe(Path(path), with_content=False) for path in paths])
    with replacing(report.folder / "corpus.json") as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
