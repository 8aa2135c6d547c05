"""What a run folder says about a run, while it goes on or afterwards. Reads files only."""

import time
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import ConfigError
from launcher.monitoring.goodput import stage_goodput
from launcher.monitoring.progress import PACE_ROWS, Pace, parse_row
from launcher.run_folder import RunFolder, StageFolder, read_json

# Enough of metrics.jsonl's end for the rows that a pace is measured over, with their losses per expert layer.
TAIL_BYTES = 1 << 20


def open_run(path: str | Path) -> RunFolder:
    """Return the run folder at a path; ConfigError when there is none."""
    run = RunFolder(Path(path).expanduser())
    if not run.state_file.is_file():
        raise ConfigError(
            f"{run.path} is not a run folder: it has no state.json. Name the folder that `chorus run` printed."
        )
    return run


def last_rows(metrics_file: Path, number: int = PACE_ROWS) -> list[dict[str, Any]]:
    """Return the last training rows (those with a loss) of a metrics file, oldest first."""
    if not metrics_file.is_file():
        return []
    with metrics_file.open("rb") as file:
        file.seek(max(0, metrics_file.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    rows: list[dict[str, Any]] = []
    for line in reversed(lines):
        row = parse_row(line)
        if row is not None and "loss" in row:
            rows.append(row)
        if len(rows) == number:
            break
    rows.reverse()
    return rows


def run_status(run: RunFolder) -> dict[str, Any]:
    """Return the state of a run: which process holds it, and per stage its status, step, pace, checkpoint and
    goodput.

    step_s is in seconds per step, eta_s in seconds, goodput in fractions of the wall time; what is not known is None.
    """
    state = read_json(run.state_file)
    records = state["stages"]
    recipe = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8"))
    planned = {stage["name"]: stage for stage in recipe["stages"]}
    holder = run.holder()
    events = run.events()

    implicit = [name for name in ("prepare", "features", "tokenizer") if name in records]
    last = ["report"] if "report" in records else []
    stages = []
    for name in [*implicit, *planned, *last]:
        record = records.get(name, {})
        status = record.get("status", "waiting")
        if status == "running" and holder is None:
            # Nobody is left who would have recorded its end.
            status = "interrupted"
        entry = {"name": name, "kind": record.get("kind") or planned[name]["kind"], "status": status}
        if "steps" in planned.get(name, {}):
            entry |= _training_status(run.stage(name), planned[name]["steps"], status)
            goodput = stage_goodput(run, name, events)
            entry["goodput"] = None if goodput is None else goodput.shares()
            entry["restarts"] = sum(event["event"] == "restart" and event["stage"] == name for event in events)
        stages.append(entry)
    return {"run": str(run.path), "recipe": state["recipe"], "process": holder, "stages": stages}


def _training_status(folder: StageFolder, steps: int, status: str) -> dict[str, Any]:
    rows = last_rows(folder.metrics_file)
    last = rows[-1] if rows else {}
    pace = Pace()
    for row in rows:
        pace.add(row)
    step = last.get("step", 0)
    step_s = pace.step_s()
    left_s = None
    if step_s is not None and status == "running":
        left_s = step_s * (steps - step)
    return {
        "step": step,
        "steps": steps,
        "loss": last.get("loss"),
        "audio_s_per_s": last.get("audio_s_per_s"),
        "step_s": step_s,
        "eta_s": left_s,
        "last_row_age_s": time.time() - last["time"] if "time" in last else None,
        "checkpoint_step": max(folder.checkpoint_steps(), default=None),
    }
