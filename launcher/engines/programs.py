"""The programs of engines: sbatch, kubectl, sky. What they say is passed on; an error becomes one paragraph."""

import subprocess
from collections.abc import Sequence

from data.redaction import redact
from launcher.errors import ConfigError

MAX_ERROR_CHARACTERS = 1500
ABSENT = 127


def ask(command: Sequence[str], what: str) -> str:
    """Run a program to its end and return what it prints; ConfigError with what it says where it fails."""
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise _absent(command) from None
    if result.returncode:
        said = " ".join(result.stderr.split()) or " ".join(result.stdout.split())
        raise ConfigError(
            f"{command[0]} could not {what}; it ended with {result.returncode} and said: "
            f"{redact(said[-MAX_ERROR_CHARACTERS:])}"
        )
    return result.stdout


def show(command: Sequence[str]) -> int:
    """Run a program on this terminal, and return its exit code: 2 where it fails."""
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except FileNotFoundError:
        raise _absent(command) from None
    if code:
        raise ConfigError(f"{command[0]} ended with {code}; what it said stands above.")
    return 0


def _absent(command: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"There is no {command[0]} in PATH, which hands jobs to the engine. Install it, or go to a machine that has it."
    )
