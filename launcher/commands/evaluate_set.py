"""`chorus evaluate MODEL DATA...`: a finished model on shards or manifests."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.redaction import redact
from launcher.commands.evaluate_options import SET_DEFAULTS
from launcher.commands.search_options import read_search_options
from launcher.devices import recognition_device
from launcher.errors import ConfigError, exit_code
from launcher.inference.adapted_model import with_adapter
from launcher.inference.model_lookup import find_model
from launcher.monitoring.progress import PlainDisplay, open_display
from launcher.processes.stop_request import StopRequest
from launcher.run_folder import write_json, write_lines, write_text

# What standard error names; --out and --json name all.
MAX_NAMED = 10
# Where confidences are fitted.
FITTED_SPLIT = "dev"


def evaluate_data(options: argparse.Namespace, stop: StopRequest) -> int:
    # An evaluation has nothing to save halfway, so a signal ends it at once.
    with stop.interrupting():
        _check_options(options)
        model = find_model(options.run)
        search = read_search_options(options)
        with with_adapter(model, options.adapter) as model:
            results, utterances = _evaluate(options, model, search.model_dump(mode="json"))

    from launcher.evaluation.page import markdown_page, short_text

    if options.out is not None:
        folder = Path(options.out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluation.json", results)
        write_text(folder / "evaluation.md", markdown_page(results))
        write_lines(folder / "utterances.jsonl", utterances)
    if options.json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        print(short_text(results))
        if options.out is not None:
            print(f"everything: {Path(options.out).expanduser() / 'evaluation.md'}")
    return _tell_unusable(results)


def _check_options(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ConfigError(f"--jobs is {options.jobs}. Give the number of processes that recognise, 1 or more.")
    if options.robustness < 0:
        raise ConfigError(f"--robustness is {options.robustness}. Give the number of utterances, such as 200.")
    if options.noise is not None and not options.robustness:
        raise ConfigError("--noise is for --robustness, which is not given. Give both, such as --robustness 200.")
    if options.out is not None and Path(options.out).expanduser().is_file():
        raise ConfigError(f"--out {options.out} is a file. Name a folder.")


def _evaluate(
    options: argparse.Namespace, model: Path, search: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    # What they import takes seconds; what is wrong with the options has been said before.
    from launcher.evaluation.conditions import conditions
    from launcher.evaluation.evaluation import Plan, evaluate_sets
    from launcher.evaluation.normalisation import load_normaliser
    from launcher.evaluation.recognition import RecogniserPool, Settings
    from launcher.evaluation.sets import find_places, open_set
    from launcher.inference.finished_model import read_features

    normaliser = load_normaliser(options.normalise)
    device = recognition_device(options.device)
    if options.jobs > 1 and device.type != "cpu":
        raise ConfigError(f"--jobs is for processors, and the model computes on {device}. Leave one of them out.")
    measured = find_places(options.data, options.split)
    fitted = []
    for name in options.calibrate_on:
        fitted += find_places([name], _fitted_split(name))
    for place in fitted:
        if any(place.path == other.path and place.split == other.split for other in measured):
            raise ConfigError(
                f"--calibrate-on {place.path} is also what is evaluated: a temperature would be judged by what it was "
                "fitted on. Name another split, such as dev."
            )
    places = (*measured, *fitted)
    sets = [open_set(place) for place in places]
    sample_rate_hz = read_features(model).sample_rate_hz
    if options.robustness:
        # Recordings of noise that are not there are said to be so before the work begins.
        conditions(sample_rate_hz, options.noise)
    plan = Plan(
        tuple(range(len(measured))),
        tuple(range(len(measured), len(places))),
        options.robustness,
        sample_rate_hz,
        options.noise,
    )
    settings = Settings(str(model), search, str(device), options.dtype, places, options.noise)

    # Standard output is for the results alone.
    display = PlainDisplay(sys.stderr) if options.json else open_display(sys.stderr)
    display.begin(f"evaluate {options.run}", 1)
    try:
        with RecogniserPool(settings, sets, options.jobs) as recognisers:
            results, utterances = evaluate_sets(sets, recognisers, plan, normaliser, options.normalise, display.count)
    finally:
        display.end()
    # The whole model is named first in what is written.
    results = {
        "model": str(options.run),
        "adapter": options.adapter,
        "search": search,
        "dtype": options.dtype,
        "device": str(device),
        "jobs": options.jobs,
        "cores": os.cpu_count(),
        **results,
    }
    return results, utterances


def _fitted_split(name: str) -> str | None:
    """The split of a folder of several that a temperature is fitted on."""
    path = Path(name).expanduser()
    if any(path.glob("[!.]*/shards.json")) and not (path / "shards.json").is_file():
        return FITTED_SPLIT
    return SET_DEFAULTS["split"]


def _tell_unusable(results: dict[str, Any]) -> int:
    """Name what could not be used on standard error; the exit code."""
    code = 0
    for kind, what in (("broken", "recordings could not be read"), ("rejected", "rows of manifests were rejected")):
        items = results[kind]
        if not items:
            continue
        code = exit_code(DataError())
        for item in items[:MAX_NAMED]:
            print(f"chorus: {item['corpus']}, {item['key']}: {redact(item['reason'])}", file=sys.stderr)
        if len(items) > MAX_NAMED:
            print(f"chorus: and {len(items) - MAX_NAMED} more", file=sys.stderr)
        print(f"chorus: {len(items)} {what}; error rates are of the others.", file=sys.stderr)
    return code
