"""Which processes of this host work for a run, so that those and no others are ended.

A process of a run belongs to this user, runs one of our modules, names the run folder and a stage in its last two
arguments, and carries the run's token in its environment. The token lies in the run folder and is made when the run
first starts processes: a folder without one was last worked on by a version that gave none. Each process is held as
psutil does it, by its number and its time of creation, so that a number that is given again is another process.
"""

import os
import re
import secrets
from pathlib import Path

import psutil

from data.files import read_bounded
from launcher.run_folder import RunFolder, write_text

TOKEN_VARIABLE = "CHORUS_RUN_TOKEN"  # noqa: S105  a name; and the token is an identity, not a secret
TOKEN = re.compile(r"[0-9a-f]{32}")
MAX_TOKEN_BYTES = 64
MODULES = ("launcher.worker", "launcher.processes.agent", "launcher.processes.shared_folder")


def make_token(run: RunFolder) -> None:
    """Give a run a token unless it has one."""
    if not _read_token(run):
        write_text(run.token_file, secrets.token_hex(16), private=True)


def token_environment(run: RunFolder) -> dict[str, str]:
    """Return the variable by which processes of a run are known; none before the run has started any."""
    token = _read_token(run)
    if not token:
        return {}
    return {TOKEN_VARIABLE: token}


def processes_of(run: RunFolder, stage: str | None = None) -> list[psutil.Process]:
    """Return the live processes here, of this user, that work for a run, or for one stage of it."""
    # A folder may be named through a link at one time and not at another.
    folder = os.path.realpath(run.path)
    token = _read_token(run)
    processes = []
    for process in psutil.process_iter():
        try:
            # Whose it is comes first: a path that another user's command line names may lie where a look at it hangs.
            if process.pid == os.getpid() or not _is_ours(process):
                continue
            if not _names(process.cmdline(), folder, stage) or process.environ().get(TOKEN_VARIABLE, "") != token:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except psutil.Error:
            # It ended while it was looked at, or is another user's.
            continue
    return processes


def _read_token(run: RunFolder) -> str:
    """Return the token of a run; empty where it has none."""
    try:
        token = read_bounded(run.token_file, MAX_TOKEN_BYTES).decode("ascii")
    except (OSError, ValueError):
        return ""
    if not TOKEN.fullmatch(token):
        return ""
    return token


def _names(arguments: list[str], folder: str, stage: str | None) -> bool:
    """Whether a command line runs one of our modules for a run folder."""
    if len(arguments) <= 2 or not any(module in arguments for module in MODULES):
        return False
    if stage is not None and arguments[-1] != stage:
        return False
    return Path(arguments[-2]).is_absolute() and os.path.realpath(arguments[-2]) == folder


def _is_ours(process: psutil.Process) -> bool:
    """Whether a process is this user's, and has no more rights than that."""
    uids = process.uids()
    return uids.real == uids.effective == os.getuid()
