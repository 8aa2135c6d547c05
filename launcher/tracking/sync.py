"""Sends what W&B recorded without a server, stage by stage, in the order in which the stages ran.

A stage that was resumed has a record for each attempt, all under the id in its `wandb.json`; one `wandb sync` of them
together appends them to one W&B run in the order of their starts. `wandb sync` leaves with 0 whether or not it could
send; what counts is the mark that it puts beside a record once all of it has arrived. A record that would take along a
file from out of the run is not sent.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ConfigError
from launcher.run_files import read_state
from launcher.run_folder import RunFolder
from launcher.tracking.login import find_login
from launcher.tracking.record_files import file_elsewhere
from launcher.tracking.wandb_backend import SENT_SUFFIX

# Of what `wandb sync` prints, the end says what went wrong.
LINES_SHOWN = 3


@dataclass(frozen=True)
class SyncResult:
    """What became of one record: the folder under `wandb` of a stage, its W&B run, and why it failed if it did."""

    stage: str
    record: str
    wandb_run: str
    sent: bool
    reason: str | None = None


def unsent_records(run: RunFolder) -> dict[str, list[Path]]:
    """Folders of what has not been sent, by stage in the order of the recipe, oldest first.

    Records of runs that were online are among them when their processes did not live to send the rest.
    """
    state = read_state(run) or {}
    names_in_order = list(state.get("stages", {}))
    # A stage that the recipe has no longer comes after those that it has.
    for folder in sorted(run.path.glob("*/wandb/")):
        if folder.parent.name not in names_in_order:
            names_in_order.append(folder.parent.name)

    unsent: dict[str, list[Path]] = {}
    for name in names_in_order:
        records = []
        for folder in run.stage(name).path.glob("wandb/*run-*/"):
            files = list(folder.glob("*.wandb"))
            if files and not all(file.with_suffix(SENT_SUFFIX).exists() for file in files):
                records.append(folder)
        if records:
            # After the prefix, a folder's name goes on with its time: run-20260102_030405-ID, offline-run-...
            unsent[name] = sorted(records, key=lambda record: record.name.removeprefix("offline-"))
    return unsent


def sync_run(run: RunFolder, timeout_s: float, on_stage: Callable[[str, int], None]) -> list[SyncResult]:
    """Send all of a run's unsent records, at most `timeout_s` for each stage. ConfigError without a login.

    `on_stage` is told each stage and its number of records before they are sent.
    """
    records = unsent_records(run)
    if records and find_login(os.environ) is None:
        num_records = sum(map(len, records.values()))
        raise ConfigError(
            f"{run.path} has {num_records} records to send, but there is no login for W&B in the "
            "environment (WANDB_API_KEY) or netrc. Run `wandb login`, and the same command again."
        )
    results = []
    for stage, folders in records.items():
        on_stage(stage, len(folders))
        refusals = {folder: _refusal(run, folder) for folder in folders}
        own_folders = [folder for folder in folders if not refusals[folder]]
        reason = ""
        if own_folders:
            reason = _sync(own_folders, timeout_s)
        for folder in folders:
            file = _record_file(folder)
            sent = not refusals[folder] and file.with_suffix(SENT_SUFFIX).exists()
            failure = None
            if not sent:
                failure = refusals[folder] or reason
            wandb_run = file.stem.removeprefix("run-")
            results.append(SyncResult(stage, folder.name, wandb_run, sent, failure))
    return results


def _record_file(folder: Path) -> Path:
    """Return the record of a folder, of which W&B writes one."""
    return sorted(folder.glob("*.wandb"))[0]


def _refusal(run: RunFolder, folder: Path) -> str:
    """Return why a record is not to be sent; empty where it may be."""
    own_folders = [run.path]
    # Where a user has artifacts staged, they are sent from.
    if "WANDB_DATA_DIR" in os.environ:
        own_folders.append(Path(os.environ["WANDB_DATA_DIR"]))
    try:
        files = sorted(folder.glob("*.wandb"))
        if len(files) > 1:
            return f"it holds {len(files)} records, and W&B writes one into a folder"
        elsewhere = file_elsewhere(files[0], own_folders)
    except (OSError, ValueError) as error:
        return f"its record cannot be read ({error})"
    if elsewhere is None:
        return ""
    return f"it would take along {elsewhere}, which is not of this run: look who put it there, or remove the record"


def _sync(folders: list[Path], timeout_s: float) -> str:
    """Call `wandb sync`; return how it ended, in words that explain what is then still unsent."""
    environment = dict(os.environ)
    # WANDB_MODE=offline, under which the stages may have run, would keep `wandb sync` from sending.
    environment.pop("WANDB_MODE", None)
    environment["WANDB_ERROR_REPORTING"] = "false"
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # A group of its own, so that its helper can be ended with it.
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        ending = f"wandb sync left with exit code {process.returncode} and did not mark it as sent"
    except subprocess.TimeoutExpired:
        _kill_group(process.pid)
        output, _ = process.communicate()
        ending = f"wandb sync was not done after {timeout_s:g} s; is the server reachable? --timeout-s allows more"
    finally:
        _kill_group(process.pid)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join([ending, *lines[-LINES_SHOWN:]])


def _kill_group(group: int) -> None:
    """End `wandb sync` and its helper, which would outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
