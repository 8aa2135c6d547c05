"""Write a corpus as shards: OUT_DIR/SPLIT for every split, `corpus.json` and `rejected.jsonl` beside them.

A split that is already there and was made from the same utterances is kept, so an interrupted preparation
is taken up by repeating it. Refused, with a `DataError`: a folder that holds the shards of something else,
unless `replace`.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from data.audio import RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig, Selection
from data.corpora.registry import CORPORA
from data.errors import DataError
from data.shard_index import FORMAT, SUMMARY, SplitReport, read_index, read_report, read_summary
from data.shards import OnProgress, fingerprint, write_split


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` left: the splits by name, those that it did not have to make, and every row left out.

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
    selection = _selection(config, seed)
    splits: dict[str, list[Utterance]] = {}
    for utterance in selection.utterances:
        splits.setdefault(utterance.split, []).append(utterance)
    shape = {"sample_rate_hz": sample_rate_hz, "shard_seconds": config.shard_seconds, "seed": seed}
    made_from = {split: fingerprint(utterances, **shape) for split, utterances in splits.items()}
    kept = _finished(out_dir, made_from, replace)
    for split, utterances in splits.items():
        if split not in kept:
            write_split(utterances, out_dir / split, **shape, workers=workers, on_progress=on_progress)
    reports = {split: read_report(out_dir / split) for split in splits}
    decoding = [row for split in reports.values() for row in split.rejected]
    rejected = tuple(sorted([*selection.rejected, *decoding], key=lambda row: (row.line, row.key)))
    report = PrepareReport(out_dir, reports, kept, rejected, _content_fingerprint(out_dir, sorted(splits)))
    _write_records(report, config, seed=seed, sample_rate_hz=sample_rate_hz)
    return report


def _selection(config: BaseCorpusConfig, seed: int) -> Selection:
    for corpus in CORPORA.values():
        if isinstance(config, corpus.config):
            return corpus.select(config, seed)
    raise TypeError(f"{type(config).__name__} is the configuration of no corpus; they are {', '.join(CORPORA)}")


def _finished(out_dir: Path, made_from: dict[str, str], replace: bool) -> tuple[str, ...]:
    """The splits that are there already; other shards are removed when `replace`, refused if not."""
    kept: list[str] = []
    present = [folder for folder in out_dir.iterdir() if (folder / SUMMARY).is_file()] if out_dir.is_dir() else []
    for folder in sorted(present):
        try:
            read_index(folder)
            problem = (
                ""
                if read_summary(folder)["made_from"] == made_from.get(folder.name)
                else "it was made from something else"
            )
        except DataError as error:
            problem = str(error)
        if not problem:
            kept.append(folder.name)
        elif replace:
            shutil.rmtree(folder)
        else:
            raise DataError(
                f"{folder} is not what this corpus, seed and sample rate give ({problem}); "
                "choose another folder, or have its shards replaced."
            )
    return tuple(kept)


def _content_fingerprint(out_dir: Path, splits: list[str]) -> str:
    shards = {split: [shard["sha256"] for shard in read_summary(out_dir / split)["shards"]] for split in splits}
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def _write_records(report: PrepareReport, config: BaseCorpusConfig, *, seed: int, sample_rate_hz: int) -> None:
    """`corpus.json`: configuration, counts and fingerprint; `rejected.jsonl`: one line per row left out."""
    splits = {
        name: {
            "utterances": split.utterances,
            "hours": split.seconds / 3600,
            "shards": split.shards,
            "bytes": split.bytes,
            "rejected": len(split.rejected),
        }
        for name, split in report.splits.items()
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
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in report.rejected]
    _replace_file(report.folder / "rejected.jsonl", "".join(lines))
    _replace_file(report.folder / "corpus.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def _replace_file(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
