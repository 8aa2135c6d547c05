"""What a run folder holds, read for the report, whatever state the run is in.

Nothing here fails because a part is missing or torn: what cannot be read is named in `Evidence.gaps`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from launcher.errors import ConfigError
from launcher.run_folder import TRAINING_KINDS, RunFolder, StageFolder, read_json
from launcher.tracking import EXPERT_LOAD, read_metrics

_MOST_ROWS = 20_000


@dataclass(frozen=True)
class Series:
    """One metric over the steps at which it was recorded; gaps (null) are left out."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass
class StageData:
    """One stage: what the recipe plans for it and what it has left behind so far."""

    name: str
    kind: str
    planned_steps: int | None
    status: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    restart_steps: list[int] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        return self.kind in TRAINING_KINDS

    @property
    def last_step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    def series(self, key: str) -> Series:
        pairs = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
        return Series(np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=float))

    def keys(self, prefix: str) -> list[str]:
        return sorted({key for row in self.rows for key in row if key.startswith(prefix)})

    def expert_layers(self) -> list[str]:
        return [match[1] for key in self.keys("experts/") if (match := EXPERT_LOAD.fullmatch(key))]


@dataclass
class RunData:
    """Everything the report is made from."""

    name: str
    recipe: dict[str, Any]
    recipe_text: str
    stages: list[StageData]
    models: dict[str, dict[str, Any]]
    examples: dict[str, list[dict[str, str]]]
    events: list[dict[str, Any]]
    gaps: list[str]

    def training_stages(self) -> list[StageData]:
        return [stage for stage in self.stages if stage.trains]


def read_run_data(run_dir: Path) -> RunData:
    """Reads a run folder; ConfigError when there is no such folder."""
    if not run_dir.is_dir():
        raise ConfigError(f"There is no run folder {run_dir}, so there is nothing to report on; name an existing one.")
    run = RunFolder(run_dir)
    gaps: list[str] = []
    recipe_text = _text(run.recipe_file, gaps)
    recipe = _recipe(recipe_text, gaps)
    events = _events(run, gaps)
    stages = [_stage(run.stage(plan["name"]), plan, events, gaps) for plan in _plans(recipe, run_dir)]
    models, examples = _evaluations(run, [stage.name for stage in stages], gaps)
    return RunData(
        name=str(recipe.get("name", run.path.name)),
        recipe=recipe,
        recipe_text=recipe_text,
        stages=stages,
        models=models,
        examples=examples,
        events=events,
        gaps=gaps,
    )


def read_models(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The models of results.json or, while the run has not got there, of the evaluations it has done."""
    run = RunFolder(run_dir)
    names = sorted(path.parent.name for path in run_dir.glob(f"*/{StageFolder(run_dir).evaluation_file.name}"))
    return _evaluations(run, names, [])[0]


def _text(path: Path, gaps: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        gaps.append(f"{path.name} could not be read ({type(error).__name__}).")
        return ""


def _recipe(text: str, gaps: list[str]) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        recipe = None
    if isinstance(recipe, dict):
        return recipe
    gaps.append("recipe.yaml is not a recipe; stages are taken from the folders there are.")
    return {}


def _plans(recipe: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    planned = [plan for plan in recipe.get("stages") or [] if isinstance(plan, dict) and "name" in plan]
    if planned:
        return planned
    found = sorted(path.parent.name for path in run_dir.glob("*/metrics.jsonl"))
    return [{"name": name, "kind": "pretrain"} for name in found]


def _json(path: Path, gaps: list[str]) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        gaps.append(f"{path.parent.name}/{path.name} could not be read ({type(error).__name__}).")
        content = None
    return content if isinstance(content, dict) else {}


def _events(run: RunFolder, gaps: list[str]) -> list[dict[str, Any]]:
    try:
        return run.events()
    except (OSError, ValueError) as error:
        gaps.append(f"events.jsonl could not be read ({type(error).__name__}).")
        return []


def _stage(folder: StageFolder, plan: dict[str, Any], events: list[dict], gaps: list[str]) -> StageData:
    rows = list(read_metrics(folder.metrics_file, thin_to=_MOST_ROWS))
    kind = str(plan.get("kind", ""))
    status = _json(folder.done_file, gaps).get("status")
    if kind == "evaluate" and folder.evaluation_file.exists():
        status = "done"
    restarts = [event for event in events if event.get("event") == "restart" and event.get("stage") == folder.name]
    return StageData(
        name=folder.name,
        kind=kind,
        planned_steps=plan.get("steps"),
        status=status or ("unfinished" if rows else "not started"),
        rows=rows,
        restart_steps=[event["from_step"] for event in restarts if isinstance(event.get("from_step"), int)],
    )


def _evaluations(run: RunFolder, stages: list[str], gaps: list[str]) -> tuple[dict, dict]:
    """Models with their sizes and error rates, and the examples of each."""
    models: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    contents = [_json(run.stage(name).evaluation_file, gaps) for name in stages]
    for content in [*contents, _json(run.results_file, gaps)]:
        for name, model in (content.get("models") or {}).items():
            kept = {key: value for key, value in model.items() if key != "examples"}
            models[name] = models.get(name, {}) | kept
            if model.get("examples"):
                examples[name] = model["examples"]
    return models, examples
