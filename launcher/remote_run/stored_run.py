"""A run whose folder is in an object store, while a launcher works on it.

The run works in a folder of this host, as every run does. Before, the launcher takes the run's lease and, where this
folder is not the one that the store's state came from, fills it from the store. While the run goes on, it is uploaded.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from data.files import remove_path
from launcher.errors import CheckpointError, ConfigError, Preempted
from launcher.recipe import Recipe
from launcher.remote_run.fetching import fetch_to_resume
from launcher.remote_run.identity import Identity, read_identity, write_identity
from launcher.remote_run.inventory import INVENTORY, Inventory
from launcher.remote_run.lease import Lease
from launcher.remote_run.mirror import STAGING, Mirror
from launcher.remote_run.object_store import ObjectStore, retrying
from launcher.remote_run.uploading import Uploader
from launcher.run_folder import PROCESS_ID_BYTES, RunFolder, open_no_link, write_text

FOLDER_FILE = ".folder"
MAX_NAMED = 5


class Stop(Protocol):
    """What is known here of a request to stop (processes/stop_request.py)."""

    count: int

    def request(self) -> None: ...

    def check(self) -> None: ...

    def interrupting(self) -> AbstractContextManager[None]: ...


class StoredRun:
    """The connection of a run folder with its store. `connected` holds it for the time of a run."""

    def __init__(self, url: str, run: RunFolder, recipe: Recipe, stop: Stop, say: Callable[[str], None]) -> None:
        self._store = ObjectStore(url)
        self._run = run
        self._recipe = recipe
        self._stop = stop
        self._say = say

    @contextmanager
    def connected(self, extended: set[str], upload_timeout_s: float) -> Iterator[None]:
        """Hold the run's lease, with its folder filled, and upload it; at the end wait for that.

        ConfigError when another launcher has the run, the store refuses, or the folder is of another run;
        DistributedError when the store does not answer; CheckpointError when the run ended well and not all of it could
        be uploaded within `upload_timeout_s`. After a stop the run's own `cluster.stop_deadline_s` is the limit.
        """
        with _locked(self._run):
            lease = Lease(self._store, _folder_name(self._run), on_loss=self._stop.request)
            lease.acquire(self._say, self._stop.check)
            try:
                inventory = self._read_inventory()
                self._settle_folder(inventory, extended)
                # What is looked at from now on; a new run has nothing in it.
                self._run.path.mkdir(exist_ok=True)
                retention = {stage.name: stage.checkpoint for stage in self._recipe.training_stages()}
                mirror = Mirror(self._run, self._store, inventory or Inventory(), retention, lease.is_confirmed)
                uploader = Uploader(self._run, self._store.url, mirror, self._say)
                uploader.start()
                try:
                    yield
                except BaseException as error:
                    timeout_s = upload_timeout_s
                    if isinstance(error, Preempted):
                        timeout_s = min(timeout_s, self._recipe.cluster.stop_deadline_s)
                    message = self._finish(uploader, lease, timeout_s)
                    if lease.lost_to:
                        raise ConfigError(message) from None
                    if message:
                        self._say(message)
                    raise
                message = self._finish(uploader, lease, upload_timeout_s)
                if lease.lost_to:
                    raise ConfigError(message)
                if message:
                    raise CheckpointError(message)
            finally:
                lease.release()

    def _finish(self, uploader: Uploader, lease: Lease, timeout_s: float) -> str:
        """Wait for the uploads; return in one paragraph what is not in the store, empty when everything is."""
        stops_before = self._stop.count
        missing = uploader.finish(timeout_s, lambda: self._stop.count > stops_before or bool(lease.lost_to))
        remove_path(self._run.path / STAGING)
        if lease.lost_to:
            return (
                f"The run {self._store.url} was taken over by {lease.lost_to}, after this launcher could not renew its "
                "lease. It has stopped, and has uploaded nothing since. What it did since then is in "
                f"{self._run.path} alone; the run goes on from what the store has."
            )
        if not missing:
            return ""
        named = ", ".join(missing[:MAX_NAMED])
        if len(missing) > MAX_NAMED:
            named += f" and {len(missing) - MAX_NAMED} more"
        reason = ""
        if uploader.problem:
            reason = f", at last because {uploader.problem}"
        return (
            f"Not all of the run is in {self._store.url}: {named} could not be uploaded within {timeout_s:.0f} s"
            f"{reason}. It is whole in {self._run.path}; the same command on this host uploads the rest."
        )

    def _read_inventory(self) -> Inventory | None:
        content, version = retrying(self._store, "read", lambda: self._store.read_version(INVENTORY))
        if content is not None:
            return Inventory.parse(content, version, self._store.url)
        state_name = self._run.state_file.name
        if retrying(self._store, "read", lambda: self._store.read(state_name)) is not None:
            raise ConfigError(
                f"{self._store.url} has a {state_name} and no {INVENTORY}: it is the copy of a run folder, and not a "
                "run kept there. Copy it to a folder, name that with --work-dir, and give another --run-dir."
            )
        return None

    def _settle_folder(self, inventory: Inventory | None, extended: set[str]) -> None:
        """Make the folder of this host one that may be gone on with: as it is, or filled from the store."""
        run = self._run
        identity = read_identity(run)
        if identity is not None and identity.url != self._store.url:
            raise ConfigError(
                f"{run.path} is the folder of the run {identity.url}, not of {self._store.url}. Name another folder "
                "with --work-dir."
            )
        if inventory is None:
            return
        if identity is None and run.state_file.exists():
            raise ConfigError(
                f"{run.path} holds a run that is not the one in {self._store.url}. Name another folder with "
                "--work-dir, which is then filled from the store; or another --run-dir, to keep this one there."
            )
        if identity is not None and not identity.is_filling:
            if inventory.id in identity.ids:
                return
            # Not removed: it may hold checkpoints that nobody else has.
            aside = _unused_name(run.path)
            run.path.rename(aside)
            self._say(
                f"Another host has gone on with the run since it was in {run.path}. That is now {aside}, which may be "
                "removed; the run goes on from what the store has."
            )
        write_identity(run, Identity(url=self._store.url, ids=[inventory.id], is_filling=True))
        self._say(f"Fetches the run from {self._store.url} into {run.path}.")
        with self._stop.interrupting():
            fetch = fetch_to_resume(self._store, inventory, run, self._recipe, extended)
        write_identity(run, Identity(url=self._store.url, ids=[inventory.id]))
        for name, reason in fetch.damaged.items():
            run.append_event("stored_file_damaged", file=name, reason=reason)
        if fetch.damaged:
            self._say(fetch.explain())


@contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Hold the folder's name for this process, also while the folder itself is moved aside or filled."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    with open_no_link(run.path.with_name(f".{run.path.name}.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read(PROCESS_ID_BYTES).decode("ascii", "replace").strip()
            raise ConfigError(
                f"The run folder {run.path} is in use by process {process}. Wait for it, stop it (kill -TERM), or "
                "choose another folder with --run-dir."
            ) from None
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
        yield


def _folder_name(run: RunFolder) -> str:
    """A name of this very folder, for the lease: whoever worked in it before has no lock on it any more, and is gone.

    It lies beside the folder, which may be moved aside, and is not its path, which other hosts have too.
    """
    path = run.path.with_name(f".{run.path.name}{FOLDER_FILE}")
    if path.is_file():
        return path.read_text(encoding="ascii").strip()
    name = uuid.uuid4().hex
    write_text(path, f"{name}\n")
    return name


def _unused_name(folder: Path) -> Path:
    number = 1
    while folder.with_name(f"{folder.name}.stale-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}.stale-{number}")
