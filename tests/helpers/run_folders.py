"""Run folders written by hand: what a run leaves, without a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.run_folder import RunFolder
from launcher.stages.fingerprint import hash_folder

BEGAN_S = 1_795_000_000.0


def training_row(step: int, loss: float | None = None, **values: Any) -> dict[str, Any]:
    """A row of metrics.jsonl as a trainer writes it, one a second."""
    if loss is None:
        loss = 5.0 / (1 + step / 100)
    row = {"step": step, "epoch": 0, "loss": loss, "learning_rate": 1e-3, "grad_norm": 1.5, "step_s": 0.1}
    return row | {"data_wait": 0.01, "audio_s_per_s": 40.0, "time": BEGAN_S + step / 10} | values


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def stage_record(kind: str, status: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "status": status, "fingerprint": "f", "settings": {}, "inputs": {}, **values}


def write_run(
    folder: Path, steps: int = 100, done: int = 50, stages: Sequence[str] = ("teacher",), name: str = "tiny"
) -> RunFolder:
    """A run whose first stages are done and whose last one has done so many of its steps, a row for every ten."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    records: dict[str, Any] = {}
    events = []
    time = BEGAN_S
    for stage in stages:
        is_last = stage == stages[-1]
        last_step = steps
        status = "done"
        if is_last and done < steps:
            last_step = done
            status = "running"
        record = stage_record("pretrain", status, inputs={"corpus/train": "c" * 64, "tokenizer": "d" * 64})
        events.append({"time": time, "event": "stage_started", "stage": stage, "reason": "not started yet"})
        events.append({"time": time, "event": "processes_started", "stage": stage, "processes": 1})
        events.append({"time": time, "event": "training_started", "stage": stage, "step": 0})
        write_rows(run.stage(stage).metrics_file, [training_row(step) for step in range(10, last_step + 1, 10)])
        if status == "done":
            write_model(run.stage(stage).model, stage)
            record |= {"output": hash_folder(run.stage(stage).model), "ended": time + 60}
            events.append({"time": time + 60, "event": "stage_done", "stage": stage})
        records[stage] = record
        time += 60
    state = {"format": 1, "recipe": name, "stages": records}
    run.state_file.write_text(json.dumps(state))
    planned = [{"name": stage, "kind": "pretrain", "steps": steps} for stage in stages]
    # JSON is YAML.
    run.recipe_file.write_text(json.dumps({"name": name, "stages": planned}))
    write_rows(run.events_file, events)
    return run


def write_model(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / "model.json").write_text("{}")


def write_results(run: RunFolder, models: dict[str, dict[str, Any]]) -> None:
    run.results_file.write_text(json.dumps({"models": models}))
