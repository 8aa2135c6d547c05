"""The models that finished stages have left: error rates, sizes, what each was made from, and its hash."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from launcher.errors import ConfigError
from launcher.registry.promotions import Promotion
from launcher.run_files import read_results, read_state
from launcher.run_folder import TRAINING_KINDS, RunFolder, is_number


@dataclass(frozen=True)
class ListedModel:
    """A finished model. `error_rates` has cer and wer (fractions) by split; `made_from` has hashes by the names of
    inputs; `sha256` is that of the model's folder when its stage ended; `names` are those that stand for it."""

    name: str
    kind: str
    folder: Path
    parameters: int | None
    size_bytes: int
    error_rates: dict[str, dict[str, float]]
    made_from: dict[str, str]
    sha256: str
    ended: float | None
    names: tuple[str, ...]


def list_models(run: RunFolder, shown: str, names: dict[str, list[Promotion]]) -> list[ListedModel]:
    """Return the finished models of a run, which a user would call `shown`, in the order of its stages.

    `names` are the promotions of every name. ConfigError for a state that is not that of a run.
    """
    state = read_state(run)
    if state is None:
        return []
    try:
        results = read_results(run) or {"models": {}}
    # Torn results are told by `chorus evaluate`; the models are there all the same.
    except DataError:
        results = {"models": {}}
    models = []
    for stage, record in state["stages"].items():
        if record["kind"] not in TRAINING_KINDS or record["status"] != "done":
            continue
        folder = run.stage(stage).model
        weights = list(folder.glob("*.safetensors"))
        if not weights or not isinstance(record["output"], str):
            continue
        result = results["models"].get(stage, {})
        model = ListedModel(
            name=f"{shown}/{stage}",
            kind=record["kind"],
            folder=folder,
            parameters=_parameters(result),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            error_rates=_error_rates(result),
            made_from={name: str(value) for name, value in record["inputs"].items()},
            sha256=record["output"],
            ended=record.get("ended"),
            names=_names_of(folder, record["output"], names),
        )
        models.append(model)
    return models


def _parameters(result: dict[str, Any]) -> int | None:
    parameters: Any = result.get("parameters")
    if is_number(parameters):
        return int(parameters)
    return None


def _error_rates(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    rates = {}
    for split, measured in result.items():
        if not isinstance(measured, dict):
            continue
        values = {key: measured[key] for key in ("cer", "wer") if is_number(measured.get(key))}
        if values:
            rates[split] = values
    return rates


def _names_of(folder: Path, sha256: str, names: dict[str, list[Promotion]]) -> tuple[str, ...]:
    """The names that stand for a model now: by its place and by its content."""
    standing = []
    for name, promotions in names.items():
        current = promotions[-1]
        if current.sha256 == sha256 and Path(current.model) == folder:
            standing.append(name)
    return tuple(standing)


def recorded_hash(folder: Path) -> str | None:
    """Return the SHA-256 that a run recorded of the model in RUN/STAGE/model; None where it is no finished stage's."""
    stage = folder.absolute().parent
    if folder.name != "model":
        return None
    try:
        state = read_state(RunFolder(stage.parent))
    # Another program's state.json: the folder is a model, and of no run.
    except ConfigError:
        return None
    if state is None:
        return None
    record = state["stages"].get(stage.name, {})
    if record.get("status") != "done":
        return None
    return record["output"]
