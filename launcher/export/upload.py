"""The upload of a folder to the Hugging Face hub. The token is in no message, no log and no file that is sent."""

import os
from pathlib import Path
from typing import Any

from data.files import open_regular
from launcher.errors import ConfigError

# Read at once while looking for the token.
BLOCK_BYTES = 2**20


def _hub() -> Any:
    """huggingface_hub; ConfigError when it is not installed."""
    try:
        import huggingface_hub

        # It imports none of them by itself.
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise ConfigError(
            "Publishing needs huggingface_hub, which is not installed. Install it: pip install 'chorus-asr[hub]'"
        ) from None
    return huggingface_hub


def check_repository(name: str) -> None:
    """ConfigError for what is no name of a repository."""
    hub = _hub()
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError:
        raise ConfigError(f"--to {name!r} is no name of a repository: write OWNER/NAME, such as acme/digits.") from None


def find_token() -> str | None:
    """The user's token, from HF_TOKEN or the file of `hf auth login`; None without one."""
    return _hub().get_token()


def why_not_sent(repository: str | None, token: str | None, dry_run: bool) -> str | None:
    """Why the folder stays here; None when it can be sent."""
    if dry_run:
        return "--dry-run was given."
    if repository is None:
        return "no repository was named. Name one with --to OWNER/NAME."
    if _hub().constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set. Unset it, and publish this folder again."
    if token is None:
        return "there is no token. Set HF_TOKEN or run `hf auth login`, and publish this folder again."
    return None


def list_files(folder: Path) -> dict[str, int]:
    """The files below a folder and their bytes, by name."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    return files


def upload(folder: Path, repository: str, token: str, private: bool) -> str:
    """Send a folder as one commit to a model repository, which is made if it is missing; its address.

    ConfigError when a file holds the token or is a link, or the hub refuses or cannot be reached.
    """
    # The hub's library sends what links lead to: in a folder from somebody else, any file of this user.
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a link to {os.path.realpath(path)}, whose content would be sent, so nothing was. Put the "
                "file itself there if it belongs to the model, or remove the link."
            )
    for name in list_files(folder):
        if _holds(folder / name, token.encode()):
            raise ConfigError(f"{folder / name} holds your Hugging Face token, so nothing was sent. Remove it there.")
    hub = _hub()
    api = hub.HfApi(token=token)
    try:
        url = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message="Upload by chorus publish"
        )
    # huggingface_hub's errors are of many kinds: those of its own, of its HTTP library, and of the system.
    except Exception as error:
        reason = " ".join(str(error).split()).replace(token, "***")[:400].rstrip(".")
        raise ConfigError(
            f"{folder} was written and could not be uploaded to {repository}: {type(error).__name__}: {reason}. "
            f"Look whether the token may write there, and give: chorus publish {folder} --to {repository}"
        ) from None
    return str(url)


def _holds(path: Path, secret: bytes) -> bool:
    """Whether a file holds these bytes, also across two blocks."""
    overlap = b""
    with open_regular(path) as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if not block:
                return False
            if secret in overlap + block:
                return True
            overlap = (overlap + block)[-len(secret) :]
