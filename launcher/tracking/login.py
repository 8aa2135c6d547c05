"""Whether to talk to the server of Weights & Biases, decided from the environment and netrc alone."""

import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def choose_mode(configured: str, environment: Mapping[str, str]) -> tuple[Mode, str]:
    """Decides how to mirror, with the reason in words; asks no server.

    `WANDB_MODE` takes the place of the configured mode. `auto` means online with a login, else offline.
    """
    from_environment = environment.get("WANDB_MODE", "")
    if from_environment:
        if from_environment not in _ENVIRONMENT_MODES:
            return "offline", f"WANDB_MODE={from_environment} is not a mode that W&B has"
        return _ENVIRONMENT_MODES[from_environment], f"WANDB_MODE={from_environment}"
    if configured != "auto":
        return _ENVIRONMENT_MODES[configured], "the recipe says so"
    login = find_login(environment)
    if login is None:
        return "offline", f"no login for {_host(environment)} in the environment or netrc"
    return "online", login


def find_login(environment: Mapping[str, str]) -> str | None:
    """Where a login for the server was found, in words; None when there is none."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environment.get(name):
            return f"{name} is set"
    host = _host(environment)
    return f"netrc has a login for {host}" if _netrc_knows(host, environment) else None


def _host(environment: Mapping[str, str]) -> str:
    return urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc


def _netrc_knows(host: str, environment: Mapping[str, str]) -> bool:
    home = Path(environment.get("HOME") or Path.home())
    given = environment.get("NETRC")
    for path in [Path(given)] if given else [home / ".netrc", home / "_netrc"]:
        try:
            login = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if login is not None and login[2]:
            return True
    return False
