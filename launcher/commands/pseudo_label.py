"""`chorus pseudo-label`: the texts of a set of shards anew, as a model hears them.

Stopped, it says so with exit code 75; the same command goes on behind the last shard whose texts are written.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from data.errors import DataError
from data.shards.index import find_splits, read_summary
from launcher.devices import recognition_device
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.labellers import open_labeller
from launcher.inference.model_lookup import find_model
from launcher.inference.pseudo_labels import (
    REJECTED,
    TRANSCRIPTS,
    Filters,
    NamedLabeller,
    SplitLabels,
    Task,
    TextRules,
    write_pseudo_labels,
)
from launcher.monitoring.progress import open_display
from launcher.processes.stop_request import StopRequest
from launcher.stages.fingerprint import hash_folder


def pseudo_label(options: argparse.Namespace, stop: StopRequest) -> int:
    with stop.interrupting():
        filters = _filters(options)
        shards = Path(options.folder).expanduser()
        rules = _text_rules(options, shards)
        out = Path(options.out or f"{str(shards).rstrip('/')}-pseudo-labels").expanduser()
        model = find_model(options.model)
        compared: Path | str | None = options.compare_with
        if options.compare_with not in (None, TRANSCRIPTS):
            compared = find_model(options.compare_with)
        splits = tuple(options.splits.split(",")) if options.splits else ()

        display = open_display(sys.stderr)
        display.begin("pseudo-label", 1)
        try:
            compared_labeller = _open(compared, options) if isinstance(compared, Path) else compared
            task = Task(
                model=_open(model, options),
                compared=compared_labeller,
                rules=rules,
                filters=filters,
                batch_seconds=options.batch_seconds,
                shard_seconds=options.shard_seconds,
                language=options.language,
            )
            reports = write_pseudo_labels(
                shards,
                out,
                task,
                splits,
                on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
            )
        finally:
            display.end()
    _show(reports, out, as_json=options.json)
    return 0


def _filters(options: argparse.Namespace) -> Filters:
    """The filters of the options; ConfigError where a number means nothing, or there is nothing to compare with."""
    for name, highest in (("min_confidence", 1.0), ("max_cer", 1e6), ("max_wer", 1e6), ("max_seconds", 1e6)):
        value = getattr(options, name)
        option = f"--{name.replace('_', '-')}"
        if value is not None and not 0 <= value <= highest:
            raise ConfigError(f"{option} is {value:g}. Give a number from 0 to {highest:g}.")
    for name in ("batch_seconds", "shard_seconds"):
        value = getattr(options, name)
        if not 0 < value <= 1e6:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}. Give seconds above 0, up to 1000000.")
    has_rate = options.max_cer is not None or options.max_wer is not None
    if has_rate and options.compare_with is None:
        raise ConfigError(
            "--max-cer and --max-wer are error rates against other texts, and none are named. Add --compare-with "
            "transcripts for the set's own, or --compare-with MODEL for those of a second model."
        )
    if options.compare_with is not None and not has_rate:
        raise ConfigError(
            f"--compare-with {options.compare_with} compares, and no limit says what becomes of it. Add --max-cer or "
            "--max-wer, such as --max-wer 0.3."
        )
    return Filters(options.min_confidence, options.max_cer, options.max_wer, options.max_seconds)


def _text_rules(options: argparse.Namespace, shards: Path) -> TextRules:
    """The rules of the options and, where they say nothing, those under which the set's own texts were written."""
    recorded = {}
    for place in find_splits(shards).values():
        recorded = read_summary(place).get("text_rules") or {}
        break
    normalize = options.normalize or recorded.get("normalize", "lower")
    punctuation = options.punctuation or recorded.get("punctuation", "remove")
    if normalize not in ("lower", "none") or punctuation not in ("remove", "keep"):
        raise DataError(
            f"The texts of {shards} were written under rules that are not known here ({json.dumps(recorded)[:200]}). "
            "Say which to use: --normalize and --punctuation."
        )
    return TextRules(normalize, punctuation, options.language or recorded.get("language", ""))


def _open(folder: Path, options: argparse.Namespace) -> NamedLabeller:
    labeller = open_labeller(folder, recognition_device(options.device), options.language)
    sha256 = hash_folder(folder)
    if sha256 is None:
        raise CheckpointError(f"{folder} has vanished while it was read. Give the command again when it is back.")
    return NamedLabeller(labeller, str(folder), sha256)


def _show(reports: dict[str, SplitLabels], out: Path, as_json: bool) -> None:
    if as_json:
        splits = {name: asdict(report) for name, report in reports.items()}
        print(json.dumps({"folder": str(out), "splits": splits}, ensure_ascii=False, indent=2))
        return
    for name, report in reports.items():
        line = f"{name}: {report.utterances} utterances, {report.seconds / 3600:.2f} h in {report.shards} shards"
        if report.kept:
            line += ", there already"
        print(line)
        if report.dropped:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(report.dropped.items()))
            print(f"{name}: {sum(report.dropped.values())} dropped: {counts}")
    print(f"{out / REJECTED} says why of each that was dropped")
