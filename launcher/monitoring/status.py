"""What a run folder says about a run, while it goes on or afterwards. Reads files only."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import ConfigError
from launcher.monitoring.goodput import stage_goodput
from launcher.monitoring.progress import PACE_ROWS, Pace
from launcher.remote_run import is_run_url
from launcher.run_files import broken_recipe, parse_metrics_row, read_recipe_values, read_state
from launcher.run_folder import RunFolder, StageFolder, read_json

if TYPE_CHECKING:
    from launcher.recipe import Recipe

# Enough of metrics.jsonl's end for the rows that a pace is measured over, with their losses per expert layer.
TAIL_BYTES = 1 << 20
# Sections that the recipe of every run has. They are at its end, so that a copy that was cut short lacks them.
LAST_SECTIONS = ("batches", "cluster", "tracking")


def open_run(path: str | Path) -> RunFolder:
    """Return the run folder at a path, or with the records of a run in a store; ConfigError when there is none, or its
    state is not that of a run."""
    if is_run_url(path):
        # fsspec takes long to import.
        from launcher.remote_run.reading import Wanted, local_copy

        path = local_copy(str(path), Wanted.RECORDS)
    run = RunFolder(Path(path).expanduser())
    if read_state(run) is None:
        raise ConfigError(
            f"{run.path} is not a run folder: it has no state.json. Name the folder that `chorus run` printed."
        )
    return run


def load_run_recipe(run: RunFolder, overrides: Sequence[str] = ()) -> "Recipe":
    """Return the recipe that a run keeps, checked, with `overrides` applied; ConfigError when it cannot be used."""
    # Takes long to import; the status of a run does without.
    from launcher.recipe import load_recipe

    values = read_recipe_values(run)
    for section in LAST_SECTIONS:
        if section not in values:
            raise broken_recipe(run, f"lacks its section {section}: it was cut short")
    return load_recipe(run.recipe_file, overrides, of_run=True)


def last_rows(metrics_file: Path, number: int = PACE_ROWS) -> list[dict[str, Any]]:
    """Return the last training rows (those with a loss) of a metrics file, oldest first."""
    if not metrics_file.is_file():
        return []
    with metrics_file.open("rb") as file:
        file.seek(max(0, metrics_file.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    rows: list[dict[str, Any]] = []
    for line in reversed(lines):
        row = parse_metrics_row(line)
        if row is not None and "loss" in row:
            rows.append(row)
        if len(rows) == number:
            break
    rows.reverse()
    return rows


def run_status(run: RunFolder, claim: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the state of a run: which process holds it, and per stage its status, step, pace, checkpoint and
    goodput. `claim` is who claims a run that was fetched from a store; `store` is how far a run is uploaded to one.

    step_s is in seconds per step, eta_s in seconds, goodput in fractions of the wall time; what is not known is None.
    """
    state = read_state(run) or {}
    records = state["stages"]
    planned = {stage["name"]: stage for stage in read_recipe_values(run)["stages"]}
    holder = run.holder()
    if claim is not None:
        holder = claim["process"]
    events = run.events()

    # The stages that come by themselves are not in the recipe; those of them that this run has are on record.
    names = [name for name in ("prepare", "features", "tokenizer") if name in records]
    names += planned
    if "report" in records:
        names.append("report")

    stages = []
    for name in names:
        record = records.get(name, {})
        status = record.get("status", "waiting")
        if status == "running" and holder is None:
            # Nobody is left who would have recorded its end.
            status = "interrupted"
        entry = {"name": name, "kind": record.get("kind") or planned[name]["kind"], "status": status}
        if "steps" in planned.get(name, {}):
            entry |= _training_status(run.stage(name), planned[name]["steps"], status)
            goodput = stage_goodput(run, name, events)
            entry["goodput"] = None
            if goodput is not None:
                entry["goodput"] = goodput.shares()
            entry["restarts"] = 0
            for event in events:
                if event["event"] == "restart" and event.get("stage") == name:
                    entry["restarts"] += 1
        stages.append(entry)
    status = {"run": str(run.path), "recipe": state["recipe"], "process": holder, "stages": stages}
    if claim is not None:
        status["host"] = claim["host"]
    store = _upload_status(run)
    if store is not None:
        status["store"] = store
    return status


def _upload_status(run: RunFolder) -> dict[str, Any] | None:
    """How far a run is uploaded to its store, by its launcher's last word; None where it has no store."""
    try:
        status = read_json(run.upload_file)
    except (OSError, ValueError):
        return None
    if not isinstance(status, dict) or not isinstance(status.get("missing"), list):
        return None
    return status


def _training_status(folder: StageFolder, steps: int, status: str) -> dict[str, Any]:
    pace = Pace()
    last: dict[str, Any] = {}
    for row in last_rows(folder.metrics_file):
        pace.add(row)
        last = row
    step = last.get("step", 0)
    step_s = pace.step_s()
    last_row_age_s = None
    if "time" in last:
        last_row_age_s = time.time() - last["time"]
    left_s = None
    # A stage that stands still has no pace.
    if step_s is not None and status == "running":
        left_s = step_s * (steps - step)
    return {
        "step": step,
        "steps": steps,
        "loss": last.get("loss"),
        "audio_s_per_s": last.get("audio_s_per_s"),
        "step_s": step_s,
        "eta_s": left_s,
        "last_row_age_s": last_row_age_s,
        "checkpoint_step": max(folder.checkpoint_steps(), default=None),
    }
