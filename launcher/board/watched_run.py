"""One run as the board knows it: read from its folder, again only where a file has changed.

Whatever is in the folder may be somebody else's: files are read within bounds, links out of it are not followed, and
what cannot be read is a sentence beside the run.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from data.errors import DataError
from data.files import parse_json
from launcher.board.curves import StageCurves, curve_values, rounded
from launcher.errors import ConfigError
from launcher.monitoring.goodput import measure_goodput
from launcher.monitoring.line_tail import LineTail, is_inside
from launcher.run_files import read_recipe_values, read_results, read_state
from launcher.run_folder import RunFolder, StageFolder, is_event, is_number

# Of state.json, recipe.yaml and results.json, which have some kilobytes, in a run of hundreds of models some megabytes.
MAX_FILE_BYTES = 8 * 2**20
# The last ones are shown; of those that goodput is measured over a run of weeks has thousands.
SHOWN_EVENTS = 60
MAX_EVENTS = 20_000
MAX_EVENT_CHARACTERS = 400
GOODPUT_EVENTS = (
    "stage_started",
    "processes_started",
    "training_started",
    "training_ended",
    "process_lost",
    "stage_done",
    "stage_stopped",
    "stage_failed",
    "update_skipped",
    "rolled_back",
    "update_left_out",
    "weights_taken_back",
)
EVENT_KEYS = ("time", "event", "stage", "step", "to_step", "rank")
SPARK_POINTS = 60
IMPLICIT_STAGES = ("prepare", "features", "tokenizer")

Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """What is known from a file, read again when it has changed; `problem` says in a sentence why nothing is."""

    def __init__(self, path: Path, inside: Path, read: Callable[[], Content], nothing: Content) -> None:
        self._path = path
        self._inside = inside
        self._read = read
        self._nothing = nothing
        self._version: tuple[int, int, int] | None = None
        self.content = nothing
        self.problem = ""

    def refresh(self) -> bool:
        """Return whether there is another content than before."""
        try:
            status = os.stat(self._path)
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            num_bytes = status.st_size
        except OSError:
            version = None
            num_bytes = 0
        if version == self._version:
            return False
        self._version = version
        self.content = self._nothing
        self.problem = ""
        if version is None:
            return True
        if num_bytes > MAX_FILE_BYTES:
            self.problem = f"{self._path.name} has {num_bytes} bytes, more than {MAX_FILE_BYTES}, and is not read."
        elif not is_inside(self._path, self._inside):
            self.problem = f"{self._path.name} is a link that leads out of the run folder, and is not followed."
        else:
            try:
                self.content = self._read()
            except (ConfigError, DataError) as error:
                self.problem = str(error)
        return True


class WatchedRun:
    """A run, and what was last seen of it.

    `summary` is replaced as a whole, so that any thread may read it; for all else `lock` is held.
    """

    def __init__(self, name: str, run: RunFolder) -> None:
        self.name = name
        self.run = run
        self.version = 0
        self.lock = threading.Lock()
        self.summary: dict[str, Any] = {}
        self._recipe_name = ""
        folder = run.path
        self._state = WatchedFile(run.state_file, folder, self._read_state, {})
        self._planned = WatchedFile(run.recipe_file, folder, self._read_planned, [])
        self._results = WatchedFile(run.results_file, folder, self._read_results, {})
        self._events_tail = LineTail(run.events_file, folder)
        self._curves: dict[str, StageCurves] = {}
        self._folders: dict[str, StageFolder] = {}
        self._forget_events()
        self._holder: int | None = None
        self._checkpoint: tuple[int, float] | None = None

    def _forget_events(self) -> None:
        self._goodput_events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._last_events: deque[dict[str, Any]] = deque(maxlen=SHOWN_EVENTS)
        self._restarts: dict[str, int] = {}
        self.lost_ranks: dict[str, int] = {}

    def refresh(self) -> bool:
        """Look at the folder again; return whether there is more to read at once."""
        # Of each file, or the one that changed first would hide the others.
        changes = [self._state.refresh(), self._planned.refresh(), self._results.refresh()]
        is_changed, has_more = self._refresh_events()
        changes.append(is_changed)
        for stage in self._training_stages():
            if stage not in self._curves:
                folder = self.run.stage(stage)
                self._folders[stage] = folder
                self._curves[stage] = StageCurves(folder.metrics_file, self.run.path)
            is_changed, stage_has_more = self._curves[stage].refresh()
            changes.append(is_changed)
            has_more = has_more or stage_has_more
        holder = None
        if any(record["status"] == "running" for record in self._state.content.values()):
            with suppress(ConfigError):
                holder = self.run.holder()
        checkpoint = self._newest_checkpoint()
        changes.append(holder != self._holder or checkpoint != self._checkpoint)
        self._holder = holder
        self._checkpoint = checkpoint
        if any(changes) or not self.summary:
            self.summary = self._summarise()
            self.version += 1
        return has_more

    def show_problem(self, problem: str) -> None:
        """Show nothing of the run but a sentence."""
        if self.summary.get("problems") != [problem]:
            self.summary = {"name": self.name, "state": "unreadable", "problems": [problem]}
            self.version += 1

    def _read_state(self) -> dict[str, dict[str, Any]]:
        state = read_state(self.run) or {"recipe": "", "stages": {}}
        self._recipe_name = state["recipe"]
        records = {}
        for name, record in state["stages"].items():
            records[name] = {"kind": record["kind"], "status": record["status"]}
        return records

    def _read_planned(self) -> list[dict[str, Any]]:
        stages = []
        for stage in read_recipe_values(self.run)["stages"]:
            stages.append({"name": stage["name"], "kind": stage["kind"], "steps": stage.get("steps")})
        return stages

    def _read_results(self) -> dict[str, dict[str, Any]]:
        models = {}
        for name, measured in (read_results(self.run) or {"models": {}})["models"].items():
            rates = {}
            for split, values in measured.items():
                if isinstance(values, dict) and is_number(values.get("cer")) and is_number(values.get("wer")):
                    rates[split] = {"cer": values["cer"], "wer": values["wer"]}
            models[name] = {"parameters": measured.get("parameters"), "rates": rates}
        return models

    def _refresh_events(self) -> tuple[bool, bool]:
        new = self._events_tail.read()
        if new.is_anew:
            self._forget_events()
        for line in new.lines:
            with suppress(ValueError):
                event = parse_json(line)
                if is_event(event):
                    self._add_event(event)
        return bool(new.lines) or new.is_anew, new.has_more

    def _add_event(self, event: dict[str, Any]) -> None:
        stage = event.get("stage", "")
        if event["event"] in GOODPUT_EVENTS:
            self._goodput_events.append({key: event[key] for key in EVENT_KEYS if key in event})
        if event["event"] == "restart":
            self._restarts[stage] = self._restarts.get(stage, 0) + 1
        if event["event"] == "process_lost" and type(event.get("rank")) is int:
            self.lost_ranks[stage] = event["rank"]
        details = []
        for key, value in event.items():
            if key not in ("time", "event", "stage"):
                word = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                details.append(f"{key.replace('_', ' ')} {word}")
        text = ", ".join(details)
        if len(text) > MAX_EVENT_CHARACTERS:
            text = f"{text[:MAX_EVENT_CHARACTERS]}..."
        shown = {"time": event["time"], "event": event["event"][:80], "stage": stage[:200], "details": text}
        self._last_events.append(shown)

    def _training_stages(self) -> list[str]:
        return [stage["name"] for stage in self._planned.content if stage["steps"]]

    def stages(self) -> list[dict[str, Any]]:
        """The stages in their order, with where each is."""
        records = self._state.content
        planned = {stage["name"]: stage for stage in self._planned.content}
        names = [name for name in IMPLICIT_STAGES if name in records]
        names += planned
        # Where the recipe cannot be read, what is on record is all that is known.
        names += [name for name in records if name not in names and name != "report"]
        stages = []
        for name in names:
            record = records.get(name, {})
            status = record.get("status", "waiting")
            if status == "running" and self._holder is None:
                # Nobody is left who would have recorded its end.
                status = "interrupted"
            kind = record.get("kind") or planned[name]["kind"]
            stage = {"name": name, "kind": kind, "status": status, "restarts": self._restarts.get(name, 0)}
            if name in self._curves:
                stage |= self._training_status(name, planned[name]["steps"], status)
            stages.append(stage)
        return stages

    def _training_status(self, name: str, steps: int, status: str) -> dict[str, Any]:
        curves = self._curves[name]
        last = curves.last_row
        step = int(last.get("step", 0))
        step_s = curves.pace.step_s()
        eta_s = None
        if step_s is not None and status == "running":
            eta_s = step_s * (steps - step)
        goodput = measure_goodput(self._goodput_events, curves.goodput_rows(), name)
        return {
            "step": step,
            "steps": steps,
            "step_s": step_s,
            "eta_s": eta_s,
            "loss": last.get("loss"),
            "audio_s_per_s": last.get("audio_s_per_s"),
            "last_row": last.get("time"),
            "goodput": goodput.shares() if goodput else None,
            "read_share": curves.read_share,
        }

    def _summarise(self) -> dict[str, Any]:
        stages = self.stages()
        current = _current(stages)
        trained = [stage for stage in stages if "step" in stage and (stage["step"] or stage is current)]
        training = trained[-1] if trained else None
        if current and "step" in current:
            training = current
        readers = [self._state, self._planned, self._results, self._events_tail, *self._curves.values()]
        problems = [reader.problem for reader in readers if reader.problem]
        summary: dict[str, Any] = {
            "name": self.name,
            "recipe": self._recipe_name,
            "state": _state_of(stages, self._holder),
            "stage": current["name"] if current else "",
            "restarts": sum(self._restarts.values()),
            "last_event": self._last_events[-1] if self._last_events else None,
            "rates": self._best_rates(),
            "problems": problems,
            "checkpoint": self._checkpoint,
        }
        for key in ("step", "steps", "eta_s", "loss", "audio_s_per_s", "last_row", "read_share"):
            summary[key] = training[key] if training else None
        summary["training_stage"] = training["name"] if training else ""
        summary["goodput"] = training["goodput"]["useful"] if training and training["goodput"] else None
        summary["spark"] = self._spark(training["name"]) if training else []
        return summary

    def _best_rates(self) -> dict[str, Any] | None:
        """The error rates of the model with the fewest errors per character, on the first split that it has."""
        best = None
        for model, result in self._results.content.items():
            for split, rates in result["rates"].items():
                if best is None or rates["cer"] < best["cer"]:
                    best = {"model": model, "split": split, **rates}
                break
        return best

    def _spark(self, stage: str) -> list[float | None]:
        losses = self._curves[stage].training.columns.get("loss", ())
        stride = -(-len(losses) // SPARK_POINTS) or 1
        points = rounded(losses[::stride])
        last = self._curves[stage].last_row.get("loss")
        if last is not None:
            points.append(last)
        return points

    def _newest_checkpoint(self) -> tuple[int, float] | None:
        """The step of the newest checkpoint of the last stage that has one, and when it was written."""
        for stage in reversed(self._training_stages()):
            folder = self._folders[stage]
            with suppress(OSError):
                steps = folder.checkpoint_steps()
                if steps:
                    return steps[-1], folder.checkpoint(steps[-1]).stat().st_mtime
        return None

    def detail(self) -> dict[str, Any]:
        """All that the page of a run shows."""
        stages = self.stages()
        for stage in stages:
            if stage["name"] not in self._curves:
                continue
            curves = self._curves[stage["name"]]
            stage["training"] = curve_values(curves.training)
            stage["validation"] = curve_values(curves.validation)
            stage["largest_loads"] = curve_values(curves.largest_loads)
            loads = {}
            for layer, load in sorted(curves.mean_loads().items()):
                loads[layer] = rounded(load)
            stage["loads"] = loads
            stage["checkpoints"] = self._checkpoints(stage["name"])
            # Those of a stage that is over say nothing any more.
            stage["processes"] = []
            if stage["status"] != "done":
                stage["processes"] = self.processes(stage["name"])
        results = []
        for model, result in self._results.content.items():
            results.append({"model": model, **result})
        return {
            **self.summary,
            "path": str(self.run.path),
            "process": self._holder,
            "stages": stages,
            "events": list(self._last_events),
            "results": results,
        }

    def _checkpoints(self, stage: str) -> list[dict[str, Any]]:
        folder = self._folders[stage]
        checkpoints = []
        with suppress(OSError):
            for step in folder.checkpoint_steps()[-50:]:
                with suppress(OSError):
                    written = folder.checkpoint(step).stat().st_mtime
                    checkpoints.append({"step": step, "time": written})
        return checkpoints

    def processes(self, stage: str) -> list[dict[str, Any]]:
        """The last heartbeat of each process of a stage."""
        folder = self._folders[stage]
        if not folder.heartbeats.is_dir() or not is_inside(folder.heartbeats, self.run.path):
            return []
        processes = []
        for heartbeat in folder.read_heartbeats():
            written = heartbeat.get("time")
            processes.append(
                {
                    "rank": heartbeat["rank"],
                    "host": heartbeat["host"][:200],
                    "pid": heartbeat["pid"],
                    "step": heartbeat["step"],
                    "section": heartbeat["section"][:80],
                    "time": written if is_number(written) else None,
                    "exit_code": heartbeat.get("exit_code"),
                }
            )
        return processes

    def stage_folder(self, stage: str) -> StageFolder | None:
        """The folder of a training or evaluation stage of that name; None where the run has none."""
        if stage in {planned["name"] for planned in self._planned.content}:
            return self.run.stage(stage)
        return None

    def prometheus_values(self) -> dict[str, float]:
        """Numbers for Prometheus by their names; those that are not known are left out."""
        summary = self.summary
        values = {
            "step": summary.get("step"),
            "loss": summary.get("loss"),
            "audio_seconds_per_second": summary.get("audio_s_per_s"),
            "goodput_ratio": summary.get("goodput"),
            "restarts": summary.get("restarts"),
        }
        if self._checkpoint is not None:
            values["seconds_since_checkpoint"] = max(0.0, time.time() - self._checkpoint[1])
        return {name: float(value) for name, value in values.items() if value is not None}


def _current(stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The stage that a run is at: the first that is not done, or the last one."""
    for stage in stages:
        if stage["status"] not in ("done", "waiting"):
            return stage
    for stage in stages:
        if stage["status"] == "waiting":
            return stage
    return stages[-1] if stages else None


def _state_of(stages: list[dict[str, Any]], holder: int | None) -> str:
    if holder is not None:
        return "running"
    statuses = {stage["status"] for stage in stages}
    for status in ("failed", "interrupted", "stopped"):
        if status in statuses:
            return status
    if statuses == {"done"}:
        return "done"
    return "waiting"
