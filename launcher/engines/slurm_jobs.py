"""Jobs of SLURM, in the words of squeue, scontrol and scancel. The batch script is in launcher/processes/slurm.py."""

import re
from typing import Any

from launcher.engines.programs import ask
from launcher.errors import ConfigError

FIELDS = {"id": "%i", "state": "%T", "time": "%M", "nodes": "%D", "reason": "%R", "name": "%j"}
JOB = re.compile(r"[0-9]{1,12}")
LOG_PATH = re.compile(r"^\s*StdOut=(/.*)$", re.MULTILINE)


def list_jobs() -> list[dict[str, Any]]:
    """Return this user's jobs as squeue shows them."""
    # The name comes last: it alone may hold what separates the fields.
    text = ask(["squeue", "--me", "--noheader", f"--format={'|'.join(FIELDS.values())}"], "list the jobs")
    jobs = []
    for line in text.splitlines():
        values = line.split("|", len(FIELDS) - 1)
        if len(values) == len(FIELDS):
            jobs.append(dict(zip(FIELDS, values, strict=True)))
    return jobs


def log_command(job: str, follow: bool) -> list[str]:
    """Return the command that shows what a job has written."""
    match = LOG_PATH.search(ask(["scontrol", "show", "job", _number(job)], f"show job {job}"))
    if match is None:
        raise ConfigError(f"SLURM names no log of job {job}. It lies in the run folder: slurm-{job}.log.")
    command = ["tail", "--lines=+1"]
    if follow:
        # By its name: a job that is queued again appends to it.
        command.append("--follow=name")
    return [*command, match[1]]


def stop(job: str) -> str:
    """Cancel a job; return what scancel says."""
    return ask(["scancel", _number(job)], f"cancel job {job}")


def _number(job: str) -> str:
    if not JOB.fullmatch(job):
        raise ConfigError(f"{job[:80]!r} is no number of a job of SLURM; `chorus jobs --on slurm` lists them.")
    return job
