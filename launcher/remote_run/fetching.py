"""Brings a run from its store to this host: what is needed to go on with it, or what a reader asks for.

Every file is compared with the inventory's SHA-256 before it takes its place. What is not what was written is passed
over and named; of checkpoints, the next older one is taken.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.files import file_sha256, remove_path, replacing
from data.remote.retrying import RetryPolicy
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe import Recipe
from launcher.remote_run.contents import SETS, belongs_in_store, write_work
from launcher.remote_run.inventory import Entry, Inventory, checkpoint_of, checkpoint_prefix
from launcher.remote_run.object_store import ObjectStore
from launcher.run_files import read_state
from launcher.run_folder import CHECKPOINT_MANIFEST, RunFolder, StageFolder, write_text

FETCHES_AT_ONCE = 8
FETCH_RETRY_S = 60.0
READ_ATTEMPTS = 3

logger = logging.getLogger(__name__)


class _DamagedError(Exception):
    """An object is missing, or is not what was written."""


class Fetch:
    """The transfer of objects of one run into one folder. `damaged` says of which, and why, they are not what was
    written."""

    def __init__(self, store: ObjectStore, inventory: Inventory, folder: Path) -> None:
        self.damaged: dict[str, str] = {}
        self._store = store
        self._inventory = inventory
        self._folder = folder
        self._policy = RetryPolicy(retry_s=FETCH_RETRY_S)

    def fetch(self, names: Iterable[str], folder: Path | None = None, prefix: str = "") -> bool:
        """Fetch objects that are not here already, into `folder` without `prefix` where these are given; whether all
        of them are what was written. DistributedError where the store does not answer."""
        root = folder or self._folder
        with ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch") as pool:
            results = pool.map(lambda name: self._fetch_file(name, root / name.removeprefix(prefix)), sorted(names))
            return all(list(results))

    def fetch_checkpoint(self, stage: StageFolder, step: int) -> bool:
        """Fetch a checkpoint, which appears under its name when it is whole; whether it is what was written."""
        prefix = checkpoint_prefix(stage.name, step)
        names = self._inventory.below(prefix)
        final = stage.checkpoint(step)
        if f"{prefix}{CHECKPOINT_MANIFEST}" not in names:
            return False
        # What an earlier attempt has fetched is moved back, and compared again.
        hidden = final.with_name(f".{final.name}.tmp")
        if final.is_dir():
            remove_path(hidden)
            final.rename(hidden)
        if not self.fetch(names, hidden, prefix):
            remove_path(hidden)
            return False
        hidden.rename(final)
        return True

    def explain(self) -> str:
        """Return a sentence about what was not what was written; empty where everything was."""
        if not self.damaged:
            return ""
        name, reason = next(iter(self.damaged.items()))
        others = ""
        if len(self.damaged) > 1:
            others = f" (and {len(self.damaged) - 1} more)"
        return f"{name}{others} in {self._store.url} is not what was written: {reason}. The run goes on without it."

    def _fetch_file(self, name: str, path: Path) -> bool:
        # While an object is replaced, it is as it was or as it will be.
        accepted = []
        for entries in (self._inventory.files, self._inventory.changing):
            if name in entries:
                accepted.append(entries[name])
        if path.is_file() and not path.is_symlink():
            present = Entry(bytes=path.stat().st_size, sha256=file_sha256(path))
            if present in accepted:
                return True

        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        num_bytes = 0
        try:
            with replacing(path, durable=False) as temporary:
                with temporary.open("wb") as file:
                    for piece in self._store.pieces(name, self._policy):
                        digest.update(piece)
                        num_bytes += len(piece)
                        file.write(piece)
                if Entry(bytes=num_bytes, sha256=digest.hexdigest()) not in accepted:
                    raise _DamagedError(f"its {num_bytes} bytes have the SHA-256 {digest.hexdigest()[:12]}...")
        except FileNotFoundError:
            if name not in self._inventory.files:
                # A launcher was killed before it came there for the first time.
                return True
            self.damaged[name] = "it is not there"
            return False
        except _DamagedError as error:
            self.damaged[name] = str(error)
            return False
        return True


def fetch_to_resume(
    store: ObjectStore, inventory: Inventory, run: RunFolder, recipe: Recipe, extended: Iterable[str]
) -> Fetch:
    """Bring what a run needs to go on: all but checkpoints, and of a stage that is not finished, or is `extended`, the
    newest checkpoint that is what was written (all, where its model is made of several).

    CheckpointError where the record of the stages is not what was written; ConfigError where there is no room.
    """
    _check_room(store, inventory, run)
    fetch = Fetch(store, inventory, run.path)
    fetch.fetch(_present(inventory, lambda name: checkpoint_of(name) is None))
    state_name = run.state_file.name
    if state_name in fetch.damaged:
        raise CheckpointError(
            f"{store.location(state_name)} is not what was written: {fetch.damaged[state_name]}. Without it nobody can "
            "tell under which settings the stages were trained. Put it back from a version that the store keeps, or "
            "choose another --run-dir."
        )
    for name, work in inventory.works.items():
        write_work(run.stage(name), work)

    records = (read_state(run) or {"stages": {}})["stages"]
    averaging = set()
    for stage in recipe.training_stages():
        if stage.average is not None and stage.average.kind in ("last", "best"):
            averaging.add(stage.name)
    for name, steps in inventory.checkpoints.items():
        # What was set aside has its record with it, and no entry here.
        is_done = records.get(name, {}).get("status") == "done"
        prefixes = tuple(f"{name}/{folder}/" for folder in SETS)
        has_output = not any(damaged.startswith(prefixes) for damaged in fetch.damaged)
        if not is_done or not has_output or name in extended:
            _fetch_checkpoints(fetch, run.stage(name), sorted(steps, reverse=True), name in averaging)
    return fetch


def _fetch_checkpoints(fetch: Fetch, stage: StageFolder, steps: list[int], all_of_them: bool) -> None:
    """Fetch the first of some checkpoints that is what was written, or each that is."""
    newest = None
    for step in steps:
        if not fetch.fetch_checkpoint(stage, step):
            logger.warning("The checkpoint of step %d of %s in the store is passed over.", step, stage.name)
            continue
        if newest is None:
            newest = step
            write_text(stage.latest_file, stage.checkpoint(step).name + "\n")
        if not all_of_them:
            return


def fetch_to_read(
    store: ObjectStore, read_inventory: Callable[[], Inventory], folder: Path, wants: Callable[[str], bool]
) -> None:
    """Bring the objects whose names `wants` asks for, for a reader.

    ConfigError where they are not what was written after another look either: a launcher may be writing them.
    """
    damaged: dict[str, str] = {}
    for _ in range(READ_ATTEMPTS):
        inventory = read_inventory()
        fetch = Fetch(store, inventory, folder)
        if fetch.fetch(_present(inventory, wants)):
            return
        damaged = fetch.damaged
    name, reason = next(iter(damaged.items()))
    raise ConfigError(
        f"The run {store.url} cannot be read: its {name} is not what was written: {reason}. A launcher may be writing "
        "it at this moment: give the same command again. If it stays so, another program has changed the object."
    )


def _present(inventory: Inventory, wants: Callable[[str], bool]) -> set[str]:
    """The names of objects that are, or may be, there and are wanted."""
    names = set()
    for name in (*inventory.files, *inventory.changing):
        if belongs_in_store(name) and wants(name):
            names.add(name)
    return names


def _check_room(store: ObjectStore, inventory: Inventory, run: RunFolder) -> None:
    """ConfigError where the disk has no room for all but the checkpoints, and for a checkpoint of each stage."""
    num_bytes = 0
    for name, entry in inventory.files.items():
        if checkpoint_of(name) is None:
            num_bytes += entry.bytes
    for stage, steps in inventory.checkpoints.items():
        for entry in inventory.below(checkpoint_prefix(stage, max(steps, default=0))).values():
            num_bytes += entry.bytes
    run.path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run.path).free
    if free < num_bytes:
        raise ConfigError(
            f"The run {store.url} takes {num_bytes / 1e9:.2f} GB on this disk, and {run.path} has {free / 1e9:.2f} GB "
            "free. Make room there, or name a folder on another disk with --work-dir."
        )
