"""A run as a managed job of SkyPilot, which finds machines, and others when they are taken away.

Every node starts `chorus node`. A job that stopped (75) or lost a process (5) is started again; where fewer GPUs are to
be had, it goes on with these.
"""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

from launcher.engines.programs import ask
from launcher.engines.submission import Submission
from launcher.errors import ConfigError
from launcher.recipe.cluster import VARIABLE

RECIPE_PLACE = "/tmp/chorus-recipe.yaml"  # noqa: S108  on machines of the job alone
# Stopped, and a process lost: launcher/errors.py.
RECOVERED_CODES = [75, 5]
PRIORITIES = range(-1000, 1001)
NUMBER = re.compile("-?[0-9]{1,4}")
JOB = re.compile(r"[0-9]{1,12}|[a-z][a-z0-9-]{0,62}")


def describe(submission: Submission) -> dict[str, Any]:
    """Return the task; ConfigError when a setting is missing, or where SkyPilot would put something else in."""
    config = submission.recipe.cluster.skypilot
    _check(submission)
    resources: dict[str, Any] = {
        "image_id": f"docker:{submission.image}",
        "use_spot": config.spot,
        "job_recovery": {"max_restarts_on_errors": config.restarts, "recover_on_exit_codes": RECOVERED_CODES},
    }
    if config.infra is not None:
        resources["infra"] = config.infra
    if submission.priority is not None:
        if not NUMBER.fullmatch(submission.priority) or int(submission.priority) not in PRIORITIES:
            raise ConfigError(f"--priority is {submission.priority!r}; for SkyPilot it is a number from -1000 to 1000.")
        resources["priority"] = int(submission.priority)
    choices = _accelerators(submission)
    if len(choices) == 1:
        resources["accelerators"] = choices[0]
    elif choices:
        # In this order: the first that is to be had.
        resources["ordered"] = [{"accelerators": choice} for choice in choices]

    recipe = submission.source
    task: dict[str, Any] = {"name": submission.name, "num_nodes": submission.nodes, "resources": resources}
    environment = dict(submission.environment)
    if submission.gpus_per_node is None:
        environment["DS_ACCELERATOR"] = "cpu"
    if environment:
        task["envs"] = environment
    if submission.secrets:
        # Without values: the program `sky` takes them from its own environment.
        task["secrets"] = dict.fromkeys(submission.secrets)
    if config.volume is not None:
        task["volumes"] = {config.mount: config.volume}
    if submission.recipe_text() is not None:
        task["file_mounts"] = {RECIPE_PLACE: str(Path(recipe).expanduser().resolve())}
        recipe = RECIPE_PLACE
    task["run"] = f"exec {shlex.join(submission.node_arguments(recipe, 'skypilot'))}\n"
    return task


def _check(submission: Submission) -> None:
    """Refuse (ConfigError) what no task can be made of."""
    config = submission.recipe.cluster.skypilot
    if submission.image is None:
        raise ConfigError("--to skypilot needs --image: a container image with Chorus (make container builds one).")
    if config.volume is None and "://" not in submission.run_dir:
        raise ConfigError(
            "A machine's own disk ends with it. Name a volume for the run folder and the shards with "
            "--set cluster.skypilot.volume=NAME, or give a --run-dir in an object store."
        )
    inside = submission.run_dir == config.mount or submission.run_dir.startswith(f"{config.mount}/")
    if not inside and "://" not in submission.run_dir:
        raise ConfigError(
            f"--run-dir is {submission.run_dir}, and the volume {config.volume} appears at {config.mount} "
            "(cluster.skypilot.mount). Give a folder in there."
        )
    if submission.gpus_per_node is not None and not config.accelerators:
        raise ConfigError(
            "--gpus-per-node needs the kinds of GPUs for SkyPilot: --set cluster.skypilot.accelerators=[H100]."
        )
    for secret in submission.secrets:
        if not VARIABLE.fullmatch(secret):
            raise ConfigError(f"--secret is {secret!r}; for SkyPilot it is the name of a variable.")
    for name, value in submission.environment.items():
        # SkyPilot puts values of variables in where a text of the task has a dollar.
        if "$" in value:
            raise ConfigError(
                f"--env gives {name} a value with a dollar in it, which SkyPilot may replace. Leave it out."
            )


def _accelerators(submission: Submission) -> list[str]:
    """Return what each node may have, the best first."""
    config = submission.recipe.cluster.skypilot
    if submission.gpus_per_node is None:
        return []
    counts = [submission.gpus_per_node]
    while config.fewer_gpus and counts[-1] > 1:
        counts.append(counts[-1] // 2)
    choices = []
    for count in counts:
        for name in config.accelerators:
            choices.append(f"{name}:{count}")
    return choices


def validate(task: dict[str, Any]) -> bool:
    """Have the package of SkyPilot read a task; False where it is not installed, ConfigError where it refuses it."""
    if importlib.util.find_spec("sky") is None:
        return False
    from sky import Task  # pyright: ignore[reportMissingImports]

    # What is checked is the form: values of secrets are given when the job is handed over.
    secrets = [(name, "checked") for name in task.get("secrets", {})]
    try:
        Task.from_yaml_config(task, secrets_overrides=secrets)
    except ValueError as error:
        raise ConfigError(f"SkyPilot does not take the task: {' '.join(str(error).split())}") from None
    return True


def hand_over(description: str, secrets: tuple[str, ...]) -> str:
    """Start the managed job of a file; return what `sky` says."""
    command = ["sky", "jobs", "launch", "--yes", "--detach-run"]
    for secret in secrets:
        # By its name: `sky` reads the value from the environment.
        command += ["--secret", secret]
    return ask([*command, description], "start the job")


def list_jobs() -> list[dict[str, Any]]:
    """Return the managed jobs of this user, in SkyPilot's own words."""
    return json.loads(ask(["sky", "jobs", "queue", "--output", "json"], "list the jobs"))


def log_command(job: str, follow: bool) -> list[str]:
    """Return the command that shows what a job has written."""
    command = ["sky", "jobs", "logs"]
    if not follow:
        command.append("--no-follow")
    return [*command, *_job(job)]


def stop(job: str) -> str:
    """Cancel a job; return what `sky` says."""
    return ask(["sky", "jobs", "cancel", "--yes", *_job(job)], f"cancel {job}")


def _job(job: str) -> list[str]:
    if not JOB.fullmatch(job):
        raise ConfigError(f"{job[:80]!r} is neither a number nor a name of a job.")
    if job.isdigit():
        return [job]
    return ["--name", job]
