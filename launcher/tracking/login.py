"""Whether to talk to the server of Weights & Biases, decided from the environment and netrc alone."""

import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]
# W&B's names; "run" and "dryrun" are its old ones, "shared" an online run that several processes write to.
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def choose_mode(configured: str, environment: Mapping[str, str]) -> tuple[Mode, str]:
    """Decides where a stage's W&B run goes, with the reason in words; asks no server.

    `WANDB_MODE` takes the place of the configured mode. `auto` means online with a login, else offline.
    """
    from_environment = environment.get("WANDB_MODE", "")
    if from_environment:
        # Offline loses nothing: what was recorded can be sent later.
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
    netrc_file = environment.get("NETRC")
    if netrc_file:
        # W&B looks there alone.
        netrc_files = [Path(netrc_file)]
    else:
        home = Path(environment.get("HOME") or Path.home())
        netrc_files = [home / ".netrc", home / "_netrc"]
    for path in netrc_files:
        try:
            login = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if login is None:
            continue
        _, _, password = login
        if password:
            return f"netrc has a login for {host}"
    return None


def _host(environment: Mapping[str, str]) -> str:
    url = environment.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    # Without what stands before the @: the host is shown in logs and by `chorus doctor`.
    return urlsplit(url).netloc.rpartition("@")[2]
