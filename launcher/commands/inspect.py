"""`chorus status`, `transcribe` and `report`: what a run has, without changing it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launcher.commands.search import search_values
from launcher.errors import CheckpointError
from launcher.monitoring.progress import duration
from launcher.monitoring.status import open_run, run_status
from launcher.recipe.search import check_search_files, read_search
from launcher.recipe.yaml_io import apply_override


def status(options: argparse.Namespace) -> int:
    found = run_status(open_run(options.run))
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    holder = found["process"]
    print(f"{found['run']}, recipe {found['recipe']}: {f'running, process {holder}' if holder else 'not running'}")
    table = Table("stage", "status", box=None, pad_edge=False)
    for heading in ("step", "loss", "audio s/s", "left", "saved at", "restarts", "useful"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in found["stages"]:
        table.add_row(stage["name"], stage["status"], *_cells(stage))
    # Rows are never broken to fit: what reads them may be a program, or a log.
    Console(soft_wrap=True).print(table)
    return 0


def _cells(stage: dict[str, Any]) -> list[str]:
    if "steps" not in stage:
        return []
    eta_s = stage["eta_s"]
    return [
        f"{stage['step']}/{stage['steps']}",
        _number(stage["loss"], ".3f"),
        _number(stage["audio_s_per_s"], ".1f"),
        "" if eta_s is None else duration(eta_s),
        _number(stage["checkpoint_step"], "d"),
        str(stage["restarts"]),
        "" if stage["goodput"] is None else f"{stage['goodput']['useful']:.1%}",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def transcribe(options: argparse.Namespace) -> int:
    model = _model_folder(Path(options.model).expanduser())
    values = search_values(options) or {}
    for override in options.set:
        apply_override(values, override)
    search = read_search({"kind": "greedy", **values}, "The search of these options")
    check_search_files(search, "search")
    from launcher.inference.evaluation import transcribe as recognise

    on_text = _show_growing if options.stream else None
    rows = recognise(model, [Path(path) for path in options.audio], search, on_text)
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    for row in rows:
        print(f"{row['audio']}\t{row['text']}" if len(rows) > 1 else row["text"])
    return 0


def _show_growing(heard_s: float, text: str) -> None:
    """The text so far on standard error, over the one before it where somebody is looking."""
    before, after = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    print(f"{before}{heard_s:7.2f} s  {text}", end=after, file=sys.stderr, flush=True)


def _model_folder(path: Path) -> Path:
    """Return the folder of the finished model at RUN/STAGE or at the path itself (else CheckpointError)."""
    for folder in (path / "model", path):
        if any(folder.glob("*.safetensors")):
            return folder
    raise CheckpointError(
        f"{path} holds no finished model: there is no *.safetensors in it nor in {path / 'model'}. "
        f"Name a training stage that is done, such as runs/mini/student; `chorus status` shows which are."
    )


def report(options: argparse.Namespace) -> int:
    run = open_run(options.run)
    from launcher.report import write_report

    write_report(run.path)
    print(json.dumps({"report": str(run.report_file)}) if options.json else run.report_file)
    return 0
