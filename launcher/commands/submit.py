"""`chorus submit`: writes the job description of an engine, shows it, checks it and hands it over."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from launcher.commands.node import place_recipe
from launcher.commands.store_options import run_path
from launcher.engines import kubernetes, skypilot
from launcher.engines.submission import Submission, check_folder, read_environment
from launcher.errors import ConfigError
from launcher.processes import slurm
from launcher.recipe import load_recipe
from launcher.remote_run import is_run_url
from launcher.run_folder import RunFolder, write_text

# Where descriptions lie until somebody removes them.
FOLDER = Path("jobs")


def submit(options: argparse.Namespace) -> int:
    environment = read_environment(options.env)
    if options.to == "slurm":
        return _submit_to_slurm(options, environment)

    settings = list(options.set)
    if options.gpus_per_node is not None:
        # The size that the recipe is checked for; fewer GPUs are what `chorus node` sees to.
        settings.insert(0, f"cluster.processes={options.nodes * options.gpus_per_node}")
    recipe = load_recipe(options.recipe, settings)
    cluster = recipe.cluster
    mount = cluster.kubernetes.mount
    if options.to == "skypilot":
        mount = cluster.skypilot.mount
    submission = Submission(
        name=_job_name(options.name, recipe.name),
        recipe=recipe,
        source=options.recipe,
        settings=tuple(settings),
        run_dir=options.run_dir or f"{mount}/{recipe.name}",
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        image=options.image,
        priority=options.priority,
        environment=environment,
        secrets=tuple(options.secret),
    )
    check_folder(submission.run_dir, submission.nodes, options.to)
    # What every node would refuse is refused here, before the job waits in a queue.
    place_recipe(options.recipe, settings, submission.placement(), None, None)

    notes = []
    if options.to == "kubernetes":
        text = yaml.safe_dump_all(kubernetes.describe(submission), sort_keys=False, allow_unicode=True)
    else:
        task = skypilot.describe(submission)
        text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
        if not skypilot.validate(task):
            notes.append("The skypilot package is not installed here: the task was not checked by it.")
    path = FOLDER / f"{submission.name}.{options.to}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, private=True)
    said = ""
    if not options.json:
        print(f"{path}:\n\n{text}")
        for note in notes:
            print(note)
    if not options.dry_run:
        if options.to == "kubernetes":
            said = kubernetes.hand_over(str(path), options.namespace)
        else:
            _check_in_environment(submission.secrets)
            said = skypilot.hand_over(str(path), submission.secrets)
    if options.json:
        values = {"engine": options.to, "description": str(path), "said": said.strip(), "notes": notes}
        print(json.dumps(values, ensure_ascii=False))
    elif said:
        print(said.strip())
    return 0


def _submit_to_slurm(options: argparse.Namespace, environment: dict[str, str]) -> int:
    """Queue `chorus run --launcher slurm`, as that command does outside of a job."""
    if options.image is not None:
        raise ConfigError("--image is for Kubernetes and SkyPilot; a job of SLURM runs the installation that is here.")
    settings = ["cluster.launcher=slurm", f"cluster.slurm.nodes={options.nodes}"]
    if options.gpus_per_node is not None:
        settings.append(f"cluster.slurm.gpus_per_node={options.gpus_per_node}")
        settings.append(f"cluster.processes={options.nodes * options.gpus_per_node}")
    settings += options.set
    if options.priority is not None:
        # sbatch has a number for who may give one, and the qualities of service that a site names.
        option = f"--qos={options.priority}"
        if re.fullmatch("[0-9]{1,10}", options.priority):
            option = f"--priority={options.priority}"
        before = load_recipe(options.recipe, settings).cluster.slurm.options
        settings.append(f"cluster.slurm.options={json.dumps([*before, option])}")
    recipe = load_recipe(options.recipe, settings)
    folder = RunFolder(run_path(options, recipe.name))
    run_dir = str(folder.path)
    if options.run_dir is not None and is_run_url(options.run_dir):
        run_dir = options.run_dir
        if options.nodes > 1:
            raise ConfigError(
                f"--run-dir is {run_dir}, and the {options.nodes} nodes of the job need a folder that all of them see "
                "to work in. Name one: chorus run RECIPE --launcher slurm --run-dir URL --work-dir DIR."
            )
    submission = Submission(
        name=_job_name(options.name, recipe.name),
        recipe=recipe,
        source=options.recipe,
        settings=tuple(settings),
        run_dir=run_dir,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        priority=options.priority,
        environment=environment,
        secrets=tuple(options.secret),
    )
    # sbatch hands its own environment on: a secret that is set here is set in the job, and stands nowhere.
    _check_in_environment(submission.secrets)

    arguments = ["run", options.recipe, "--run-dir", run_dir]
    for setting in settings:
        arguments += ["--set", setting]
    script = slurm.batch_script(recipe, folder, arguments, submission.name, submission.environment)
    write_text(folder.batch_script, script, private=True)
    said = ""
    if not options.json:
        print(f"{folder.batch_script}:\n\n{script}")
    if not options.dry_run:
        said = slurm.submit(str(folder.batch_script))
    if options.json:
        values = {"engine": "slurm", "description": str(folder.batch_script), "said": said, "notes": []}
        print(json.dumps(values, ensure_ascii=False))
    elif said:
        print(f"Job {said} is queued; it writes to {folder.path}/slurm-{said}.log.")
    return 0


def _job_name(given: str | None, recipe_name: str) -> str:
    if given is not None:
        return given
    # A recipe's name may have what engines' names may not.
    return re.sub("[^a-z0-9]+", "-", recipe_name.lower()).strip("-")


def _check_in_environment(secrets: Sequence[str]) -> None:
    for name in secrets:
        if not os.environ.get(name):
            raise ConfigError(
                f"--secret names {name}, which is not set here. This engine takes a secret from the environment of "
                "this command: set the variable, and give the command again."
            )
