"""`chorus jobs`, `chorus logs` and `chorus stop`: the jobs of an engine, in its own words."""

import argparse
import json
import subprocess
from typing import Any

from launcher.engines import kubernetes, skypilot, slurm_jobs
from launcher.engines.programs import show
from launcher.errors import ConfigError


def jobs(options: argparse.Namespace) -> int:
    match options.on:
        case "slurm":
            listed = slurm_jobs.list_jobs()
        case "kubernetes":
            listed = kubernetes.list_jobs(options.namespace)
        case _:
            listed = skypilot.list_jobs()
    if options.json:
        print(json.dumps({"engine": options.on, "jobs": listed}, ensure_ascii=False, indent=2))
        return 0
    if not listed:
        print(f"No jobs on {options.on}.")
    for job in listed:
        print("  ".join(_shown(value) for value in job.values()))
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def logs(options: argparse.Namespace) -> int:
    match options.on:
        case "slurm":
            command = slurm_jobs.log_command(options.job, options.follow)
        case "kubernetes":
            command = kubernetes.log_command(options.job, options.follow, options.namespace)
        case _:
            command = skypilot.log_command(options.job, options.follow)
    if not options.json:
        return show(command)
    # A line of JSON for each line, as they come.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(json.dumps({"job": options.job, "line": line.rstrip("\n")}, ensure_ascii=False), flush=True)
    if process.returncode:
        raise ConfigError(f"{command[0]} ended with {process.returncode}; what it said stands above.")
    return 0


def stop(options: argparse.Namespace) -> int:
    match options.on:
        case "slurm":
            said = slurm_jobs.stop(options.job)
        case "kubernetes":
            said = kubernetes.stop(options.job, options.namespace)
        case _:
            said = skypilot.stop(options.job)
    if options.json:
        print(json.dumps({"engine": options.on, "job": options.job, "said": said.strip()}, ensure_ascii=False))
    else:
        print(said.strip() or f"{options.on} was asked to end {options.job}; its run saves and leaves.")
    return 0
