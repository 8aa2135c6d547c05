"""`chorus run`: brings a run to its end, from wherever it is."""

import argparse
import re
import sys
import time

from launcher.commands.store_options import run_path
from launcher.errors import ConfigError
from launcher.executor import Executor, claim_folder
from launcher.formatting import duration
from launcher.monitoring.progress import Display, open_display
from launcher.processes import shared_folder, slurm
from launcher.processes.launchers import make_launcher
from launcher.processes.stop_request import StopRequest
from launcher.processes.worker_command import check_evaluation_devices, check_machine
from launcher.recipe import Recipe, check_inputs, load_recipe
from launcher.recipe.former_defaults import former_defaults_of, with_former_defaults
from launcher.remote_run import is_run_url
from launcher.report import results_table
from launcher.run_files import read_state
from launcher.run_folder import RunFolder, write_text
from launcher.stages.start_checks import check_start
from launcher.tracking import check_tracking


def read_recipe(options: argparse.Namespace) -> tuple[Recipe, RunFolder]:
    """Return the recipe that the options describe, and its run folder, which need not exist."""
    overrides = list(options.set)
    for key in ("processes", "hostfile", "launcher"):
        value = getattr(options, key)
        if value is not None:
            overrides.append(f"cluster.{key}={value}")
    profile = getattr(options, "profile", None)
    if profile is not None:
        steps = re.fullmatch(r"steps=(\d+):(\d+)", profile)
        if steps is None:
            raise ConfigError(f"--profile is {profile!r}; say which steps, such as --profile steps=20:30.")
        overrides.append(f"cluster.profile_steps=[{steps[1]}, {steps[2]}]")
    if getattr(options, "profile_start", False):
        overrides.append("cluster.profile_start=true")
    recipe = load_recipe(options.recipe, overrides, count_slots=True)
    folder = RunFolder(run_path(options, recipe.name))

    # A run that an earlier version began goes on as it was begun.
    state = read_state(folder) or {"stages": {}}
    begun_with = former_defaults_of(record["settings"] for record in state["stages"].values())
    return with_former_defaults(recipe, begun_with), folder


def run(options: argparse.Namespace, stop: StopRequest) -> int:
    with stop.interrupting():
        # What extends a stage is a setting like any other, beside what it says of the stage's work.
        options.set = [*options.set, *options.extend]
        recipe, folder = read_recipe(options)
        extended = _extended_stages(recipe, options.extend)
        check_inputs(recipe)
        check_machine(recipe.cluster)
        check_tracking(recipe.tracking)
    display = open_display(sys.stdout)
    is_queued = recipe.cluster.kind == "slurm" and not slurm.inside_job()
    follows = recipe.cluster.kind == "no_ssh" and options.node_rank != 0
    if options.run_dir is None or not is_run_url(options.run_dir) or is_queued or follows:
        return _run_in_folder(options, stop, display, recipe, folder, extended)

    if options.work_dir is None and len(make_launcher(recipe.cluster).topology.hosts) > 1:
        raise ConfigError(
            f"--run-dir is {options.run_dir}, and the hosts of the run need a folder that all of them see to work in. "
            "Name one with --work-dir."
        )
    # fsspec takes long to import.
    from launcher.remote_run.stored_run import StoredRun

    stored_run = StoredRun(options.run_dir, folder, recipe, stop, display.say)
    with stored_run.connected(extended, options.upload_timeout_s):
        with stop.interrupting():
            # The store may have had a run that an earlier version began.
            recipe, folder = read_recipe(options)
        return _run_in_folder(options, stop, display, recipe, folder, extended)


def _run_in_folder(
    options: argparse.Namespace,
    stop: StopRequest,
    display: Display,
    recipe: Recipe,
    folder: RunFolder,
    extended: set[str],
) -> int:
    with stop.interrupting():
        if folder.path.exists():
            claim_folder(recipe, folder)
        check_start(recipe, folder)
        # Inside the job, the script that is queued here runs the same command.
        if recipe.cluster.kind == "slurm" and not slurm.inside_job():
            return _queue(recipe, folder, options)
        check_evaluation_devices(recipe)
        _check_options(recipe, options)
    # Host 0 holds the run; the others start what it writes into the folder.
    if recipe.cluster.kind == "no_ssh" and options.node_rank != 0:
        launcher = make_launcher(recipe.cluster)
        if options.node_rank is None:
            # Without its number, a host is not known: say what to start on each.
            shared_folder.show_commands(launcher.topology, folder, options.arguments)
        else:
            assert isinstance(launcher, shared_folder.SharedFolderLauncher)
            shared_folder.Follower(recipe, launcher, folder, options.node_rank, stop, display).follow()
        return 0

    executor = Executor(
        recipe,
        folder,
        stop,
        display,
        may_set_aside=options.set_aside,
        extended=extended,
    )
    return bring_to_end(recipe, folder, executor, display)


def bring_to_end(recipe: Recipe, folder: RunFolder, executor: Executor, display: Display) -> int:
    """Run what is left of a run, with its folder locked, and say what came of it; return the exit code."""
    display.say(f"Recipe {recipe.name} in {folder.path}; stop at any time, the same command goes on.")
    started = time.monotonic()
    with folder.locked() as links:
        for link in links:
            display.say(f"{link} is a link: what belongs there is written to, and removed from, {link.resolve()}.")
        executor.check_half_trained()
        executor.write_recipe()
        with executor.launcher.notify_followers(folder):
            ran = executor.run()
    if ran:
        display.say(f"Everything is done, in {duration(time.monotonic() - started)}.")
    else:
        display.say("Everything is done; nothing was started.")
    if folder.results_file.exists():
        display.say(f"\n{results_table(folder.path)}\n")
    display.say(f"Report: {folder.report_file}")
    return 0


def _extended_stages(recipe: Recipe, overrides: list[str]) -> set[str]:
    """Return the names of the training stages that --extend is about, under all seeds."""
    names: set[str] = set()
    for override in overrides:
        match = re.match(r"stages\.([^.=]+)\.(steps|optimizer)\b", override)
        stages = []
        for stage in recipe.training_stages():
            if match and match[1] in (stage.name, stage.unseeded_name):
                stages.append(stage.name)
        if not stages:
            raise ConfigError(
                f"--extend is {override!r}; it takes the steps or the optimizer of a training stage, such as "
                "stages.teacher.steps=9000 or stages.teacher.optimizer.peak_learning_rate=1e-4."
            )
        names.update(stages)
    return names


def _check_options(recipe: Recipe, options: argparse.Namespace) -> None:
    if options.dry_run:
        raise ConfigError(
            "--dry-run belongs to --launcher slurm, outside a job. `chorus plan` with the same options shows what "
            "would be started."
        )
    for name in options.set_aside:
        # Refuses a name that is none.
        recipe.training_stage(name)
    if options.node_rank is None:
        return
    if recipe.cluster.kind != "no_ssh":
        raise ConfigError(f"--node-rank belongs to --launcher no_ssh; the launcher is {recipe.cluster.kind}.")
    hosts = len(make_launcher(recipe.cluster).topology.hosts)
    if not 0 <= options.node_rank < hosts:
        raise ConfigError(f"--node-rank is {options.node_rank}, but the hosts in use are 0 to {hosts - 1}.")


def _queue(recipe: Recipe, folder: RunFolder, options: argparse.Namespace) -> int:
    """Write the batch script of a run into its folder, show it, and submit it unless it is a dry run."""
    # The job is to run what the dry run only shows.
    arguments = [argument for argument in options.arguments if argument != "--dry-run"]
    script = slurm.batch_script(recipe, folder, arguments)
    write_text(folder.batch_script, script, private=True)
    print(f"{folder.batch_script}:\n\n{script}")
    if not options.dry_run:
        job = slurm.submit(str(folder.batch_script))
        print(f"Job {job} is queued; it writes to {folder.path}/slurm-{job}.log. `scancel {job}` stops it.")
    return 0
