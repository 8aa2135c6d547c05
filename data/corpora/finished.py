"""Which splits of a prepared corpus are still what preparing it again would give.

A split is finished when it is whole by its own records and was made from the same utterances and recordings. It is made
again, without being asked, when rows that were rejected can be used now.
"""

import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from data.audio import Utterance, read_audio
from data.errors import DataError
from data.files import parse_json, read_lines
from data.shards.index import MAX_ROW_BYTES, SUMMARY, read_index, read_report, read_summary
from data.shards.sources import SOURCES, changed_sources, describe, moved_sources, read_sources, write_sources
from data.shards.writer import fingerprint

REJECTED = "rejected.jsonl"

logger = logging.getLogger(__name__)


def changed_recordings(out_dir: Path) -> list[str]:
    """The recordings that are not what they were when `prepare` wrote a folder: of used rows by their content, of
    rejected ones by their time too. Empty where nothing is known of them, as of shards of earlier versions.
    """
    # Beside the splits lies what is known of rows that no split has.
    folders = [out_dir]
    for path in sorted(out_dir.glob(f"[!.]*/{SOURCES}")):
        folders.append(path.parent)
    paths: list[str] = []
    for folder in folders:
        sources = read_sources(folder) or {}
        for source in changed_sources(sources.values()):
            paths.append(source.path)
    return paths


def finished_splits(
    out_dir: Path, splits: dict[str, list[Utterance]], shape: dict[str, Any], replace: bool
) -> tuple[str, ...]:
    """The splits that are there already. Those to be made again are removed: of something else only when `replace`,
    else refused (DataError), and those of which rejected rows were repaired.

    `shape` is what `fingerprint` takes beside the utterances.
    """
    if not out_dir.is_dir():
        return ()
    listed_lines: set[int] = set()
    for utterances in splits.values():
        listed_lines.update(utterance.line for utterance in utterances)
    rejected_lines = _rejected_lines(out_dir, listed_lines)
    finished: list[str] = []
    for folder in sorted(out_dir.iterdir()):
        # Hidden are splits that are not whole yet, and those of a preparation that was killed.
        if folder.name.startswith(".") or not (folder / SUMMARY).is_file():
            continue
        utterances = splits.get(folder.name, [])
        problem = ""
        is_repaired = False
        try:
            read_index(folder)
            before = _listed_before(folder, utterances, shape, rejected_lines)
            if before is None:
                problem = "it was made from something else"
            else:
                problem, is_repaired = _compare_recordings(folder, before, shape["sample_rate_hz"], replace)
                # What was rejected before and is usable now is the one difference that needs no permission.
                is_repaired = is_repaired or len(before) < len(utterances)
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


def _rejected_lines(out_dir: Path, listed_lines: set[int]) -> set[int]:
    """Which lines of usable rows are those of rows that were rejected before; none where these are not recorded."""
    lines: set[int] = set()
    try:
        for line in read_lines(out_dir / REJECTED, MAX_ROW_BYTES):
            number = parse_json(line)["line"]
            if number in listed_lines:
                lines.add(number)
    except (OSError, ValueError, KeyError, TypeError):
        # A split with more rows than before is then made from something else, as it is without the file.
        return set()
    return lines


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


def _compare_recordings(
    folder: Path, utterances: list[Utterance], sample_rate_hz: int, replace: bool
) -> tuple[str, bool]:
    """What is wrong with a split because its recordings changed, and whether rows that it rejected may be usable now.

    Where their content is what it was, what is recorded of them is brought up to date.
    """
    rejected_keys = {row.key for row in read_report(folder).rejected}
    used_paths: set[str] = set()
    rejected: list[Utterance] = []
    for utterance in utterances:
        if utterance.key in rejected_keys:
            rejected.append(utterance)
        else:
            used_paths |= _paths_of(utterance)

    recorded = read_sources(folder)
    if recorded is None:
        return _compare_times(folder, used_paths, replace), _any_readable(rejected, sample_rate_hz)

    paths = used_paths.union(*map(_paths_of, rejected))
    sources = moved_sources(recorded, paths)
    changed: set[str] = set()
    for source in changed_sources(sources.values()):
        changed.add(source.path)
    # With those of which nothing is recorded: the corpus is elsewhere, and its folders have another shape.
    changed_used = sorted((used_paths & changed) | (used_paths - sources.keys()))
    if changed_used:
        return f"{len(changed_used)} of its {len(used_paths)} recordings changed, the first is {changed_used[0]}", False
    if changed:
        return "", True

    now = []
    for source in sources.values():
        seen = describe(Path(source.path), with_content=False)
        # A recording that was removed since is remembered as it was.
        now.append(source if seen.num_bytes is None else replaced(seen, sha256=source.sha256))
    if now != list(recorded.values()):
        write_sources(folder, now)
    return "", False


def _paths_of(utterance: Utterance) -> set[str]:
    return {str(clip.path.absolute()) for clip in utterance.clips}


def _compare_times(folder: Path, paths: Iterable[str], replace: bool) -> str:
    """A problem where recordings are newer than shards that do not know what they were; a warning unless `replace`."""
    made_ns = (folder / SUMMARY).stat().st_mtime_ns
    newer: list[str] = []
    for path in sorted(paths):
        if describe(Path(path), with_content=False).mtime_ns > made_ns:
            newer.append(path)
    if not newer:
        return ""
    problem = (
        f"the shards do not record what their recordings were, and {len(newer)} of these are newer than the shards, "
        f"the first is {newer[0]}"
    )
    if replace:
        return problem
    logger.warning("%s: %s. The shards are kept; --replace makes them anew.", folder, problem)
    return ""


def _any_readable(utterances: Iterable[Utterance], sample_rate_hz: int) -> bool:
    for utterance in utterances:
        try:
            read_audio(utterance, sample_rate_hz)
        except DataError:
            continue
        return True
    return False
