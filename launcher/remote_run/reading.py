"""Runs and models in a store, for the commands that read them: fetched into the cache, and checked on the way."""

import enum
import fcntl
from pathlib import Path
from typing import Any

from data.files import remove_path
from launcher.errors import ConfigError
from launcher.remote_run.contents import SETS, read_contents
from launcher.remote_run.fetching import fetch_to_read
from launcher.remote_run.inventory import INVENTORY, Inventory, checkpoint_of
from launcher.remote_run.lease import read_holder
from launcher.remote_run.local_folders import local_folder
from launcher.remote_run.object_store import ObjectStore, check_run_url, retrying
from launcher.run_folder import CHECKPOINT_MANIFEST, RunFolder, open_no_link

# How far above RUN/STAGE/model the inventory of its run lies.
MAX_LEVELS = 2


class Wanted(enum.Enum):
    """What of a run is fetched for a reader; checkpoints never are."""

    # All of a run but models; of checkpoints the manifests, from which one sees which there are.
    RECORDS = "records"
    WITH_MODELS = "with models"
    # What is below the URL, which may be RUN/STAGE or RUN/STAGE/model.
    PART = "part"


def local_copy(url: str, wanted: Wanted) -> Path:
    """Return the folder that a URL of a run, or of a part of one, is fetched into.

    ConfigError where the store has no run there, or refuses; DistributedError where it does not answer.
    """
    run_url, rest = _find_run(url.rstrip("/"))
    store = ObjectStore(run_url)
    folder = local_folder("read", run_url)

    def is_wanted(name: str) -> bool:
        if wanted is Wanted.PART:
            return checkpoint_of(name) is None and (not rest or name.startswith(f"{rest}/"))
        if checkpoint_of(name) is not None:
            return name.endswith(f"/{CHECKPOINT_MANIFEST}")
        return wanted is Wanted.WITH_MODELS or not _is_of_set(name)

    folder.mkdir(parents=True, exist_ok=True)
    with open_no_link(folder.with_name(f".{folder.name}.lock")) as lock:
        # Another command may be fetching the same.
        fcntl.flock(lock, fcntl.LOCK_EX)
        inventory = _read_inventory(store)
        assert inventory is not None
        _remove_former(RunFolder(folder), inventory)
        fetch_to_read(store, lambda: _read_inventory(store) or Inventory(), folder, is_wanted)
    return folder / rest


def claim_of(url: str) -> dict[str, Any] | None:
    """Return who claims a run in a store: host, process, and how often that has renewed its lease; None if nobody."""
    store = ObjectStore(url)
    return retrying(store, "read", lambda: read_holder(store))


def _find_run(url: str) -> tuple[str, str]:
    """Return the URL of the run that a URL belongs to, and what of it the URL names."""
    check_run_url(url)
    run_url = url
    rest = ""
    for _ in range(MAX_LEVELS + 1):
        if _read_inventory(ObjectStore(run_url)) is not None:
            return run_url, rest
        above, _, name = run_url.rpartition("/")
        rest = f"{name}/{rest}".rstrip("/")
        # Above the first folder of a bucket is no run.
        if not above.partition("://")[2].partition("/")[2]:
            break
        run_url = above
    raise ConfigError(
        f"There is no run at {url}: neither there nor above it is an {INVENTORY}. Name the URL that was given to "
        "`chorus run` as --run-dir, or RUN/STAGE below it."
    )


def _read_inventory(store: ObjectStore) -> Inventory | None:
    content, version = retrying(store, "read", lambda: store.read_version(INVENTORY))
    if content is None:
        return None
    return Inventory.parse(content, version, store.url)


def _is_of_set(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 2 and parts[1] in SETS


def _remove_former(run: RunFolder, inventory: Inventory) -> None:
    """Remove what an earlier look fetched and the store no longer has."""
    contents = read_contents(run)
    for name, file in contents.small.items():
        if name not in inventory.files and name not in inventory.changing:
            file.path.unlink(missing_ok=True)
    for stage, folders in contents.checkpoints.items():
        for step, folder in folders.items():
            if step not in inventory.checkpoints.get(stage, {}):
                remove_path(folder)
    for prefix in contents.sets:
        if not inventory.below(prefix):
            remove_path(run.path / prefix)
