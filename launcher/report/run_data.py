"""What a run folder holds, read for the report, whatever state the run is in.

Nothing here fails because a part is missing or torn: what cannot be read is named in `RunData.gaps`.

Shapes: L layers with experts, E experts.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.errors import DataError
from data.files import parse_json, read_bounded, read_lines
from data.redaction import redact
from launcher.bounded_yaml import MAX_CHARACTERS, load_yaml
from launcher.errors import ConfigError
from launcher.quarantine import read_quarantined
from launcher.run_files import read_done, read_evaluation, read_results
from launcher.run_folder import TRAINING_KINDS, RunFolder, StageFolder
from launcher.tracking import EXPERT_LOAD, read_metrics

# A figure shows at most 500 points of a series, smoothed over a twentieth of its rows: these are more than enough.
_MAX_ROWS = 20_000
_LAST_SHARE = 0.1
# Of a log; what is longer names no utterance.
_MAX_LINE_BYTES = 2**14
# Of what a preparation left out, the first say what it is; the file has all.
_MAX_REJECTED = 12
_MAX_REJECTED_CHARACTERS = 500


@dataclass(frozen=True)
class Series:
    """One metric over the steps at which it was recorded; gaps (null) are dropped."""

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
        """The last recorded step; 0 before the first."""
        return max((row["step"] for row in self.rows), default=0)

    def series(self, key: str) -> Series:
        """A metric over its steps; empty where it was never recorded."""
        steps = []
        values = []
        for row in self.rows:
            if row.get(key) is not None:
                steps.append(row["step"])
                values.append(row[key])
        return Series(np.array(steps), np.array(values, dtype=float))

    def sum_over_steps(self, rate: str) -> float:
        """What all steps of the stage did, of a metric per second: a row stands for the steps since the last one."""
        total = 0.0
        previous_step = 0
        for row in self.rows:
            # Rows of validations have no rates.
            if row.get(rate) is None or row.get("step_s") is None:
                continue
            num_steps = row["step"] - previous_step
            total += row[rate] * row["step_s"] * num_steps
            previous_step = row["step"]
        return total

    def keys(self, prefix: str) -> list[str]:
        """All metrics whose names begin so, sorted."""
        keys = set()
        for row in self.rows:
            # Rows of training and of validation have different keys, so no row has them all.
            keys.update(key for key in row if key.startswith(prefix))
        return sorted(keys)

    def expert_layers(self) -> list[str]:
        """The names of the layers whose experts' load was recorded."""
        layers = []
        for key in self.keys("experts/"):
            match = EXPERT_LOAD.fullmatch(key)
            if match is not None:
                layers.append(match[1])
        return layers


@dataclass(frozen=True)
class Quarantined:
    """An utterance that a stage could not read, and went on without."""

    stage: str
    key: str
    reason: str


@dataclass(frozen=True)
class RejectedRows:
    """What a preparation left out: the file that names it all, how much, and the first few with their reasons."""

    file: str
    what: str
    count: int
    first: tuple[str, ...]


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
    quarantined: list[Quarantined]
    rejected: list[RejectedRows]
    gaps: list[str]

    def evaluations(self) -> list[str]:
        """The names of the stages that evaluate."""
        return [stage.name for stage in self.stages if stage.kind == "evaluate"]

    def training_stages(self) -> list[StageData]:
        return [stage for stage in self.stages if stage.trains]

    def plans_experts(self) -> bool:
        """Whether a stage of the recipe trains a model with experts."""
        for plan in self.recipe.get("stages") or []:
            if not isinstance(plan, dict):
                continue
            # An empty mapping of YAML is null.
            model = plan.get("model") or {}
            encoder = model.get("encoder") or {}
            if encoder.get("experts"):
                return True
        return False


def average_load(stage: StageData) -> np.ndarray | None:
    """Load [L, E] in even shares, mean of the last tenth of the rows; None without experts.

    A layer with fewer experts than another is filled up with NaN.
    """
    loads = []
    for layer in stage.expert_layers():
        key = f"experts/{layer}/load"
        rows = [row[key] for row in stage.rows if row.get(key)]
        num_last = max(1, round(_LAST_SHARE * len(rows)))
        load_E = np.mean(rows[-num_last:], axis=0)
        # Shares of frames add up to 1; times the number of experts, an even share is 1 whatever that number is.
        loads.append(load_E * len(load_E))
    if not loads:
        return None

    num_experts = max(map(len, loads))
    load_LE = np.full((len(loads), num_experts), np.nan)
    for layer, load_E in enumerate(loads):
        load_LE[layer, : len(load_E)] = load_E
    return load_LE


def read_run_data(run_dir: Path) -> RunData:
    """Reads a run folder; ConfigError when there is no such folder."""
    if not run_dir.is_dir():
        raise ConfigError(f"There is no run folder {run_dir}, so there is nothing to report on; name an existing one.")
    run = RunFolder(run_dir)
    gaps: list[str] = []
    try:
        recipe_text = read_bounded(run.recipe_file, 4 * MAX_CHARACTERS).decode("utf-8")
    except (OSError, ValueError) as error:
        gaps.append(f"{run.recipe_file.name} could not be read ({type(error).__name__}).")
        recipe_text = ""
    # As plain YAML and not through the recipe's schema: a recipe that is no longer valid still gets its report.
    try:
        recipe = load_yaml(recipe_text) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        gaps.append("recipe.yaml is not a recipe; stages are taken from the folders there are.")
        recipe = {}
    try:
        events = run.events()
    except (OSError, ValueError) as error:
        gaps.append(f"events.jsonl could not be read ({type(error).__name__}).")
        events = []

    stages = []
    # A stage of the recipe is listed before it has begun, too.
    for plan in _stage_plans(recipe, run_dir):
        stages.append(_read_stage(run.stage(plan["name"]), plan, events, gaps))
    models, examples = _read_evaluations(run, [stage.name for stage in stages], gaps)
    return RunData(
        name=str(recipe.get("name", run.path.name)),
        recipe=recipe,
        recipe_text=redact(recipe_text),
        stages=stages,
        models=models,
        examples=examples,
        events=events,
        quarantined=_read_quarantined(run, [stage.name for stage in stages], gaps),
        rejected=_read_rejected(run, gaps),
        gaps=gaps,
    )


def read_models(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The models of results.json or, while the run has not got there, of the evaluations it has done."""
    evaluation_name = StageFolder(run_dir).evaluation_file.name
    stages = sorted(path.parent.name for path in run_dir.glob(f"*/{evaluation_name}"))
    models, _ = _read_evaluations(RunFolder(run_dir), stages, [])
    return models


def _stage_plans(recipe: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """The stages of the recipe; without any, those that have recorded metrics."""
    plans = []
    for plan in recipe.get("stages") or []:
        # A name that leads out of the run folder is nobody's stage.
        if isinstance(plan, dict) and _is_entry(plan.get("name")):
            plans.append(plan)
    # A run whose recipe is lost still shows what it has learned.
    if not plans:
        for path in sorted(run_dir.glob("*/metrics.jsonl")):
            plans.append({"name": path.parent.name, "kind": "pretrain"})
    return plans


def _is_entry(name: Any) -> bool:
    """Whether a name is that of something in a folder; a stage of another version may have any such name."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _read_quarantined(run: RunFolder, stages: list[str], gaps: list[str]) -> list[Quarantined]:
    """The utterances that the processes of the stages passed over, each once per stage.

    Runs of earlier versions have them in their logs alone.
    """
    utterances: dict[tuple[str, str], Quarantined] = {}
    for name in stages:
        for path in run.stage(name).quarantine_files():
            try:
                for record in read_quarantined(path):
                    place = f"{record['shard']} at offset {record['offset']} ({record['split']})"
                    utterances[name, record["key"]] = Quarantined(name, record["key"], f"{place}: {record['reason']}")
            except (OSError, ValueError) as error:
                gaps.append(f"{name}/{path.name} could not be read ({type(error).__name__}).")
        for path in sorted(run.stage(name).logs.glob("rank-*.log")):
            try:
                for line in read_lines(path, _MAX_LINE_BYTES):
                    utterance = _parse_quarantined(name, line.decode(errors="replace"))
                    if utterance is not None:
                        utterances.setdefault((name, utterance.key), utterance)
            except (OSError, ValueError) as error:
                gaps.append(f"{name}/{path.name} could not be read ({type(error).__name__}).")
    return list(utterances.values())


def _read_rejected(run: RunFolder, gaps: list[str]) -> list[RejectedRows]:
    """What the preparation of the corpus and the tokenizer left out, by the files that say so."""
    # Takes long to import, and whoever shows the table of results alone does without.
    from data.corpora.finished import REJECTED
    from data.shards.index import MAX_ROW_BYTES

    files = {run.infeasible_file: "training utterances too short for CTC to write their text"}
    # A mixture has a folder for each of its corpora.
    for path in [run.corpus / REJECTED, *sorted(run.corpus.glob(f"*/{REJECTED}"))]:
        files[path] = "rows or recordings of the corpus that could not be used"
    rejected = []
    for path, what in files.items():
        count = 0
        first = []
        try:
            for line in read_lines(path, MAX_ROW_BYTES):
                count += 1
                if count <= _MAX_REJECTED:
                    first.append(_describe_rejected(line))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            gaps.append(f"{path.relative_to(run.path)} could not be read ({type(error).__name__}).")
        if count:
            rejected.append(RejectedRows(str(path.relative_to(run.path)), what, count, tuple(first)))
    return rejected


def _describe_rejected(line: bytes) -> str:
    """A line of JSON as text: what each key has."""
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        return line[:_MAX_REJECTED_CHARACTERS].decode(errors="replace")
    details = [f"{key}: {value}" for key, value in row.items() if value not in (None, "")]
    return redact(", ".join(details)[:_MAX_REJECTED_CHARACTERS])


def _parse_quarantined(stage: str, line: str) -> Quarantined | None:
    """The utterance that a line of a log names, as data/shards/reader.py words it; None for other lines."""
    # Part by part: a search for all of it at once takes minutes for a line that is made for that.
    _, _, rest = line.partition("Utterance ")
    key, _, rest = rest.partition(" at offset ")
    _, _, rest = rest.partition(" of ")
    reason, end, _ = rest.partition(". Look at the split with")
    if not end or " is broken: " not in reason:
        return None
    return Quarantined(stage, key, reason)


def _read_stage(folder: StageFolder, plan: dict[str, Any], events: list[dict], gaps: list[str]) -> StageData:
    rows = list(read_metrics(folder.metrics_file, thin_to=_MAX_ROWS))
    kind = str(plan.get("kind", ""))
    status = read_done(folder).get("status")
    # An evaluation's results are written whole, before they are tracked and done.json follows.
    if kind == "evaluate" and folder.evaluation_file.exists():
        status = "done"
    if not status and rows:
        status = "unfinished"
    elif not status:
        status = "not started"

    restart_steps = []
    for event in events:
        is_restart = event.get("event") == "restart" and event.get("stage") == folder.name
        if is_restart and isinstance(event.get("from_step"), int):
            restart_steps.append(event["from_step"])
    return StageData(
        name=folder.name,
        kind=kind,
        planned_steps=plan.get("steps"),
        status=status,
        rows=rows,
        restart_steps=restart_steps,
    )


def _read_evaluations(run: RunFolder, stages: list[str], gaps: list[str]) -> tuple[dict, dict]:
    """Models with their sizes and error rates, and the examples of each."""
    models: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    # results.json comes last: it sums up the evaluations and so has the last word.
    readers = [partial(read_evaluation, run.stage(name)) for name in stages]
    readers.append(partial(read_results, run))
    for read in readers:
        try:
            content = read()
        except DataError as error:
            gaps.append(str(error))
            continue
        if content is None:
            continue
        for name, model in content["models"].items():
            results = dict(model)
            model_examples = results.pop("examples", None)
            models[name] = models.get(name, {}) | results
            if model_examples:
                examples[name] = model_examples
    return models, examples
