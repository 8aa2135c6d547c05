"""Where on this host a run of a store is worked on, and where it is fetched to be read."""

import hashlib
from pathlib import Path

from data.errors import DataError
from data.remote.settings import cache_folder
from launcher.errors import ConfigError
from launcher.remote_run.object_store import check_run_url

URL_DIGITS = 12


def work_folder(url: str, work_dir: str | None) -> Path:
    """The folder in which a run of a store works on this host: `work_dir`, or one in the cache that the URL names."""
    check_run_url(url)
    if work_dir is not None:
        return Path(work_dir).expanduser().absolute()
    return local_folder("runs", url)


def local_folder(kind: str, url: str) -> Path:
    """A folder of the cache for a run in a store."""
    url = url.rstrip("/")
    digits = hashlib.sha256(url.encode()).hexdigest()[:URL_DIGITS]
    try:
        return cache_folder().absolute() / kind / f"{url.rpartition('/')[2]}-{digits}"
    except DataError:
        raise ConfigError(
            "There is no folder to work in: this user has no home. Name one with --work-dir, or in CHORUS_CACHE."
        ) from None
