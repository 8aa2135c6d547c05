"""`chorus models`: the models that finished runs left, and names that stand for them."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.errors import CheckpointError, ConfigError
from launcher.formatting import MISSING, count, percent
from launcher.inference.model_lookup import find_model, packaged_models
from launcher.monitoring.run_discovery import find_runs
from launcher.plain_text import WIDEST_TABLE, make_console, table_cell
from launcher.registry.listing import ListedModel, list_models, recorded_hash
from launcher.registry.promotions import Promotion, promote, read_names, read_promotions
from launcher.stages.fingerprint import hash_folder

DEFAULT_RUNS = "runs"
HASH_DIGITS = 12


def models(options: argparse.Namespace) -> int:
    """`chorus models [RUNS...]`, `chorus models promote MODEL NAME` and `chorus models history NAME`."""
    folder = Path(options.models_dir).expanduser()
    words = options.words
    if words[:1] == ["promote"]:
        if len(words) != 3:
            raise ConfigError("chorus models promote takes a model and a name: promote runs/mini/student production.")
        return _promote(words[1], words[2], folder, options)
    if options.note:
        raise ConfigError("--note is for `chorus models promote`. Leave it out.")
    if words[:1] == ["history"]:
        if len(words) != 2:
            raise ConfigError("chorus models history takes a name, such as history production.")
        return _show_history(words[1], folder, options)
    return _list(words or [DEFAULT_RUNS], folder, options)


def _promote(model: str, name: str, models_folder: Path, options: argparse.Namespace) -> int:
    if name in packaged_models():
        raise ConfigError(f"{name} is a model that comes with Chorus, and would not be found any more. Choose another.")
    folder = find_model(model)
    recorded = recorded_hash(folder)
    if recorded is not None and recorded != hash_folder(folder):
        raise CheckpointError(
            f"The model in {folder} is not what its stage has left: its files were changed since. Run the recipe "
            "again, which makes it anew from the last checkpoint, and promote that."
        )
    before = read_promotions(models_folder / name)
    promotion = promote(folder, model, name, options.note or "", models_folder)
    if options.json:
        print(json.dumps({"name": name, **asdict(promotion)}, ensure_ascii=False, indent=2))
        return 0
    print(f"{name} stands for {promotion.model} ({promotion.sha256[:HASH_DIGITS]}).")
    if before:
        print(f"Before: {before[-1].model} ({before[-1].sha256[:HASH_DIGITS]}).")
    return 0


def _show_history(name: str, models_folder: Path, options: argparse.Namespace) -> int:
    promotions = read_promotions(models_folder / name)
    if not promotions:
        names = ", ".join(read_names(models_folder)) or "none"
        raise ConfigError(f"No model is called {name} in {models_folder}. There are: {names}.")
    if options.json:
        rows = [asdict(promotion) for promotion in promotions]
        print(json.dumps({"name": name, "promotions": rows}, ensure_ascii=False, indent=2))
        return 0
    rows = []
    # The present model first.
    for promotion in reversed(promotions):
        rows.append((_day(promotion.time), promotion.model, promotion.sha256[:HASH_DIGITS], promotion.note))
    _print_table(("since", "model", "hash", "note"), rows)
    return 0


def _list(folders: Sequence[str], models_folder: Path, options: argparse.Namespace) -> int:
    roots = [Path(folder).expanduser() for folder in folders]
    names = read_names(models_folder)
    listed: list[ListedModel] = []
    problems = []
    for run in find_runs(roots).values():
        try:
            listed += list_models(run, _shown_path(run.path), names)
        # One run that is torn must not hide the models of the others.
        except ConfigError as error:
            problems.append(str(error))
    if options.json:
        print(json.dumps(_as_json(listed, names, problems), ensure_ascii=False, indent=2))
        return 0
    rows = [_row(model) for model in listed]
    if rows:
        _print_table(("model", "CER / WER", "parameters", "MB", "made from", "hash", "name"), rows)
    else:
        print(f"No finished model below {', '.join(folders)}.")
    for name, promotions in names.items():
        print(f"{name}: {promotions[-1].model} ({promotions[-1].sha256[:HASH_DIGITS]})")
    for problem in problems:
        print(f"Passed over: {problem}")
    return 0


def _shown_path(path: Path) -> str:
    """A run's path as a user would type it here."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _as_json(
    listed: Sequence[ListedModel], names: dict[str, list[Promotion]], problems: Sequence[str]
) -> dict[str, Any]:
    rows = []
    for model in listed:
        row = asdict(model)
        row["folder"] = str(model.folder)
        rows.append(row)
    current = {name: asdict(promotions[-1]) for name, promotions in names.items()}
    return {"models": rows, "names": current, "problems": list(problems)}


def _row(model: ListedModel) -> tuple[str, ...]:
    rates = []
    for split, values in model.error_rates.items():
        rates.append(f"{split} {percent(values.get('cer'))} / {percent(values.get('wer'))}")
    return (
        model.name,
        ", ".join(rates) or MISSING,
        count(model.parameters),
        f"{model.size_bytes / 1e6:.1f}",
        ", ".join(_lineage(model)),
        model.sha256[:HASH_DIGITS],
        ", ".join(model.names),
    )


def _lineage(model: ListedModel) -> list[str]:
    """The inputs of a model's stage: its shards, and the models that it learnt or started from, with their hashes."""
    sources = []
    for name, sha256 in model.made_from.items():
        # Every model of a run has them alike.
        if name in ("tokenizer", "features"):
            continue
        sources.append(f"{name} ({sha256[:HASH_DIGITS]})")
    return sources


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*[table_cell(cell) for cell in row])
    make_console(soft_wrap=True, width=WIDEST_TABLE).print(table)
