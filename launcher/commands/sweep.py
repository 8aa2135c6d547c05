"""`chorus sweep`: a recipe under many settings, as runs of their own."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from launcher.errors import EXIT_CODES, ConfigError, DistributedError
from launcher.formatting import MISSING, duration, percent
from launcher.monitoring.progress import Display, PlainDisplay
from launcher.plain_text import WIDEST_TABLE, make_console, table_cell
from launcher.processes.stop_request import StopRequest
from launcher.processes.worker_command import check_evaluation_devices, check_machine
from launcher.recipe import Recipe, check_inputs, load_recipe
from launcher.run_files import read_results
from launcher.sweep.points import read_axis
from launcher.sweep.scheduler import Limits, Scheduler, budget_seconds, check_machine_for, run_command
from launcher.sweep.shared_stages import SharedGroup, group_trials, hand_over, run_shared
from launcher.sweep.trials import SweepFolder, SweepSpec, Trial, make_trials, open_sweep, spec_hash, write_sweep
from launcher.tracking import check_tracking


def sweep(options: argparse.Namespace, stop: StopRequest) -> int:
    with stop.interrupting():
        axes = [read_axis(text) for text in options.over]
        spec = SweepSpec(
            recipe=options.recipe,
            overrides=tuple(options.set),
            axes=tuple(options.over),
            num_random=options.random,
            num_seeds=options.seeds,
        )
        limits = Limits(options.parallel, budget_seconds(options.budget), _share(options.stop_after))
        # All of them, so that a wrong setting of the last one is said before anything starts.
        trials, recipes = make_trials(spec, axes)
        for recipe in recipes:
            check_machine_for(recipe, limits.parallel)
        for recipe in _one_of_each(recipes):
            check_inputs(recipe)
            check_machine(recipe.cluster)
            check_evaluation_devices(recipe)
            check_tracking(recipe.tracking)
        folder = SweepFolder(Path(options.run_dir or f"runs/{recipes[0].name}-sweep").expanduser())
        sha256 = spec_hash(spec, recipes)
        trials = open_sweep(folder, sha256, trials)
        groups = group_trials(trials, recipes)
    if options.dry_run:
        _show_plan(trials, recipes, groups, options.json)
        return 0
    # Standard output is for the results alone.
    display = PlainDisplay(sys.stderr if options.json else sys.stdout)
    recipe_of = {trial.name: recipe for trial, recipe in zip(trials, recipes, strict=True)}
    with folder.lock.locked():
        for trial in trials:
            # A run that failed is tried again, once for each start of the sweep.
            if trial.state == "failed":
                trial.state = "interrupted"
        save = partial(write_sweep, folder, spec, sha256, recipes[0].name, trials)
        save()
        _run_groups(folder, spec, trials, recipe_of, groups, limits, save, stop, display)
    _show_results(folder, trials, options.json)
    return _exit_code(trials)


def _share(stop_after: float | None) -> float | None:
    if stop_after is not None and not 0 < stop_after < 1:
        raise ConfigError(
            f"--stop-after is {stop_after:g}. Give a share of a stage's steps above 0 and below 1, such as 0.3."
        )
    return stop_after


def _one_of_each(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The first recipe of each corpus, cluster and set of stages' names: checks of files look at each file once."""
    first: dict[str, Recipe] = {}
    for recipe in recipes:
        key = repr((recipe.corpus, recipe.augment, recipe.cluster, recipe.tracking, recipe.stages))
        first.setdefault(key, recipe)
    return list(first.values())


def _run_groups(
    folder: SweepFolder,
    spec: SweepSpec,
    trials: list[Trial],
    recipe_of: dict[str, Recipe],
    groups: Sequence[SharedGroup],
    limits: Limits,
    save: Any,
    stop: StopRequest,
    display: Display,
) -> None:
    """Do what each group shares, and then the runs."""
    group_of: dict[str, int] = {}
    judged: dict[str, list[str]] = {}
    for number, group in enumerate(groups, start=1):
        for place in group.trials:
            name = trials[place].name
            group_of[name] = number
            stages = recipe_of[name].training_stages()
            judged[name] = [stage.name for stage in stages if stage.name not in group.stages]
        is_left = any(trials[place].state in ("waiting", "interrupted", "running") for place in group.trials)
        if is_left:
            display.say(f"What {len(group.trials)} runs share: {', '.join(group.stages)}")
            recipe = _shared_recipe(spec, trials[group.trials[0]])
            run_shared(recipe, folder.shared(number), group.stages, stop, display)

    def prepare(trial: Trial) -> None:
        number = group_of[trial.name]
        hand_over(recipe_of[trial.name], folder.shared(number), folder.trial(trial), groups[number - 1].stages)

    make_command = partial(run_command, spec.recipe, folder)
    Scheduler(folder, trials, recipe_of, judged, limits, make_command, prepare, save, stop, display).run()


def _shared_recipe(spec: SweepSpec, trial: Trial) -> Recipe:
    """The recipe of a run under all seeds at once."""
    overrides = [override for override in trial.overrides if not override.startswith("seeds=")]
    if spec.num_seeds is not None:
        overrides.append(f"seeds={list(range(1, spec.num_seeds + 1))}")
    return load_recipe(spec.recipe, overrides, count_slots=True)


def _show_plan(
    trials: Sequence[Trial], recipes: Sequence[Recipe], groups: Sequence[SharedGroup], as_json: bool
) -> None:
    if as_json:
        shared = [{"runs": [trials[place].name for place in group.trials], "stages": group.stages} for group in groups]
        print(json.dumps({"runs": [asdict(trial) for trial in trials], "shared": shared}, ensure_ascii=False, indent=2))
        return
    for group in groups:
        print(f"{len(group.trials)} runs share {', '.join(group.stages)}")
    rows = []
    for trial, recipe in zip(trials, recipes, strict=True):
        steps = sum(stage.steps for stage in recipe.training_stages())
        settings = ", ".join(f"{key}={value}" for key, value in trial.point.items())
        rows.append((trial.name, trial.state.replace("_", " "), f"{steps:,}", settings))
    _print_table(("run", "state", "steps", "settings"), rows)


def _show_results(folder: SweepFolder, trials: Sequence[Trial], as_json: bool) -> None:
    rows = []
    for trial in trials:
        results: dict[str, Any] = read_results(folder.trial(trial)) or {"models": {}}
        rows.append({**asdict(trial), "run": str(folder.trial(trial).path), "models": results["models"]})
    if as_json:
        print(json.dumps({"sweep": str(folder.path), "runs": rows}, ensure_ascii=False, indent=2))
        return
    lines = []
    for row in rows:
        rates = []
        for model, measured in row["models"].items():
            for split, values in measured.items():
                if isinstance(values, dict) and "cer" in values:
                    rates.append(f"{model} {split} {percent(values['cer'])}")
        lines.append(
            (row["name"], row["state"].replace("_", " "), duration(row["seconds"]), ", ".join(rates) or MISSING)
        )
    _print_table(("run", "state", "time", "CER"), lines)
    num_left = sum(trial.state in ("waiting", "interrupted") for trial in trials)
    if num_left:
        print(f"The budget is used up; {num_left} runs are left. With a larger --budget the same command goes on.")
    if any(trial.state == "done" for trial in trials):
        print(f"Side by side: chorus compare {folder.path} --out sweep.html")


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*[table_cell(cell) for cell in row])
    make_console(soft_wrap=True, width=WIDEST_TABLE).print(table)


def _exit_code(trials: Sequence[Trial]) -> int:
    """That of the first run that failed, where it is one of ours; 0 where none did."""
    for trial in trials:
        if trial.state == "failed":
            if trial.exit_code in EXIT_CODES.values():
                return trial.exit_code or 0
            return EXIT_CODES[DistributedError]
    return 0
