"""Brings a run folder to its store, step by step, in an order that leaves the store usable whatever is killed when.

What is to be done is the difference between the folder and the inventory, seen anew at each look: nothing is queued,
so a store that stands still costs no memory, and ten changes of a file are one upload.

- Objects that are about to be written anew are named in the inventory before, with the content they will have.
- A checkpoint's parts come first, then all small files (its rows of metrics are among them), then its manifest; then
  the inventory names it, then `latest` does, and only then older checkpoints go.
- `state.json` comes when the models of all that it calls done are there. A checkpoint waits for its stage's record.
- A stage's folder that was moved aside here is moved in the store too, before anything takes its place.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import file_sha256, open_regular, read_json, remove_path
from launcher.recipe.retention import retained
from launcher.recipe.stages import CheckpointConfig
from launcher.remote_run.contents import (
    Contents,
    LocalFile,
    Signature,
    read_checkpoint,
    read_contents,
)
from launcher.remote_run.inventory import INVENTORY, Entry, Inventory, checkpoint_of, checkpoint_prefix
from launcher.remote_run.object_store import ObjectStore
from launcher.remote_run.stored_inventory import LATEST, StoredInventory
from launcher.run_folder import CHECKPOINT_MANIFEST, RunFolder

# Small files are uploaded so often, and may take up this share of the time where they have grown large.
SMALL_EVERY_S = 10.0
SMALL_SHARE = 0.05
# In the run folder: copies of small files, which change while they are uploaded, and links to the files of a set, which
# the run may clear away meanwhile.
STAGING = ".uploading"
COPY_BYTES = 2**20


@dataclass(frozen=True)
class _FileSet:
    """Files of which all count or none: a model, units, or (`step`) a checkpoint. The last of them goes last."""

    prefix: str
    stage: str
    files: dict[str, Path]
    step: int | None = None
    validation_cer: float | None = None


class Mirror:
    """A run folder and what its store has of it."""

    def __init__(
        self,
        run: RunFolder,
        store: ObjectStore,
        inventory: Inventory,
        retention: Mapping[str, CheckpointConfig],
        may_write: Callable[[], bool],
    ) -> None:
        """`retention` says by stage which checkpoints stay; of stages that are not in it, all do. `may_write` says
        whether this launcher still has the run."""
        self._run = run
        self._store = store
        self._stored = StoredInventory(run, store, inventory, may_write)
        self._inventory = inventory
        self._retention = retention
        self._contents = Contents()
        # By which content of theirs the small files, sets and manifests here are known to be in the store.
        self._uploaded: dict[str, Any] = {}
        self._stored_records: dict[str, Any] = {}
        self._named_latest: dict[str, int] = {}
        # The parts of the set under way that are there.
        self._sent: dict[str, Entry] = {}
        self._cers: dict[tuple[Path, Signature], float | None] = {}
        self._damaged: set[Path] = set()
        self._small_due_s = 0.0

    @property
    def stopped(self) -> bool:
        """Whether nothing is to be written any more."""
        return self._stored.stopped

    def stop(self) -> None:
        """Write nothing any more, from any thread; a transfer under way ends at its next look at this."""
        self._stored.stopped = True

    def look(self, everything: bool) -> bool:
        """Upload what is due, and at most one set of files; whether nothing is left. With `everything`, small files are
        due whenever they differ."""
        self._stored.check()
        if not self._stored.is_saved:
            self._stored.save()
        self._contents = read_contents(self._run)
        self._follow_works(self._contents)
        if everything or time.monotonic() >= self._small_due_s:
            self._upload_small(self._contents)
        file_set = self._next_set(self._contents)
        if file_set is not None:
            self._upload_set(file_set)
        self._name_latest()
        self._retire()
        self._clear_away()
        if file_set is not None:
            return False
        # The record of the stages may have waited for a model that was found to be there.
        return not everything or not self.missing_files()

    def refresh(self) -> None:
        """See what is here now, without uploading it."""
        self._contents = read_contents(self._run)

    def missing_sets(self) -> list[str]:
        """Return the checkpoints and models here that the store does not have, in words."""
        missing = []
        for stage, folders in self._contents.checkpoints.items():
            stored = self._inventory.checkpoints.get(stage, {})
            for step in sorted(self._wanted_steps(stage, folders) - stored.keys()):
                missing.append(f"the checkpoint of step {step} of {stage}")
        for prefix, files in self._contents.sets.items():
            if self._uploaded.get(prefix) != _signatures(files):
                missing.append(prefix.rstrip("/"))
        return missing

    def missing_files(self) -> list[str]:
        """Return the names of small files here whose present content the store does not have."""
        missing = []
        for name, file in self._contents.small.items():
            if self._uploaded.get(name) != file.signature:
                missing.append(name)
        if not self._stored.is_saved:
            missing.append(INVENTORY)
        return missing

    def stored_checkpoints(self) -> dict[str, int]:
        """Return the newest step of each stage in the store."""
        return {stage: max(steps) for stage, steps in self._inventory.checkpoints.items() if steps}

    # Small files.

    def _upload_small(self, contents: Contents) -> None:
        """Write the objects of small files that have changed, and let those go that are no longer here."""
        began_s = time.monotonic()
        inventory = self._inventory
        gone = []
        for name in inventory.files:
            if checkpoint_of(name) is None and name not in contents.small and not contents.is_in_set(name):
                gone.append(name)
        copies: dict[str, Path] = {}
        entries: dict[str, Entry] = {}
        staging = self._staging("small")
        for name, file in contents.small.items():
            if self._uploaded.get(name) == file.signature and name in inventory.files:
                continue
            copy = staging / f"{len(copies)}"
            # What has just been moved aside is found there at the next look.
            with suppress(FileNotFoundError):
                entry = _copy(file.path, copy)
                if inventory.files.get(name) == entry:
                    self._note_small(name, file, copy)
                else:
                    copies[name] = copy
                    entries[name] = entry
        state = self._run.state_file.name
        if state in copies and not self._has_models_of(copies[state], contents):
            del copies[state], entries[state]
        if copies or gone:
            inventory.drop(gone)
            inventory.changing = entries
            self._stored.save()
            # Last what says what the others are.
            for name in sorted(copies, key=lambda name: (name == state, name)):
                self._stored.check()
                self._store.upload(name, copies[name], self._stored.is_stopped)
                self._note_small(name, contents.small[name], copies[name])
            inventory.files.update(entries)
            inventory.changing = {}
            self._stored.save()
        remove_path(staging)
        took_s = time.monotonic() - began_s
        self._small_due_s = time.monotonic() + max(SMALL_EVERY_S, took_s / SMALL_SHARE)

    def _note_small(self, name: str, file: LocalFile, copy: Path) -> None:
        self._uploaded[name] = file.signature
        if name == self._run.state_file.name:
            self._stored_records = read_json(copy)["stages"]

    def _has_models_of(self, state: Path, contents: Contents) -> bool:
        """Whether the store has the models and units of all stages that a record of stages calls done."""
        records = read_json(state)["stages"]
        for prefix, files in contents.sets.items():
            stage = prefix.partition("/")[0]
            is_done = records.get(stage, {}).get("status") == "done"
            if is_done and self._uploaded.get(prefix) != _signatures(files):
                return False
        return True

    # Sets of files.

    def _next_set(self, contents: Contents) -> _FileSet | None:
        """Return the set to upload next: models before checkpoints, of which the newest comes first."""
        for prefix, files in contents.sets.items():
            if self._uploaded.get(prefix) == _signatures(files):
                continue
            # A model that is replaced at this moment is looked at again.
            with suppress(FileNotFoundError):
                local = {}
                for name, file in files.items():
                    local[name] = Entry(bytes=file.num_bytes, sha256=file_sha256(file.path))
                if local != self._inventory.below(prefix):
                    paths = {name: file.path for name, file in files.items()}
                    return _FileSet(prefix, prefix.partition("/")[0], paths)
                self._uploaded[prefix] = _signatures(files)

        candidates = []
        for stage, folders in contents.checkpoints.items():
            # Without its record, a fresh host could not tell under which settings it was trained.
            if stage not in self._stored_records and f"{stage}/set-aside.json" not in self._inventory.files:
                continue
            for step in self._wanted_steps(stage, folders):
                with suppress(FileNotFoundError):
                    candidates.append((folders[step].stat().st_mtime_ns, stage, step))
        for _, stage, step in sorted(candidates, reverse=True):
            with suppress(FileNotFoundError):
                file_set = self._checkpoint_set(stage, step, contents.checkpoints[stage][step])
                if file_set is not None:
                    return file_set
        return None

    def _wanted_steps(self, stage: str, folders: dict[int, Path]) -> set[int]:
        """The steps of the checkpoints here that belong into the store, whether they are there or not."""
        cers: dict[int, float | None] = {}
        for step, folder in folders.items():
            with suppress(FileNotFoundError):
                manifest = folder / CHECKPOINT_MANIFEST
                status = manifest.stat()
                key = (folder, (status.st_ino, status.st_size, status.st_mtime_ns))
                if key not in self._cers:
                    try:
                        _, self._cers[key] = read_checkpoint(folder)
                    except ValueError:
                        self._damaged.add(folder)
                        self._cers[key] = None
                cers[step] = self._cers[key]
        wanted = {step for step in cers if folders[step] not in self._damaged}
        config = self._retention.get(stage)
        if config is not None and cers:
            # Of what is here and what is there together: a fresh host has not got the older ones.
            cers |= self._inventory.checkpoints.get(stage, {})
            wanted &= retained(cers, max(cers), config)
        return wanted

    def _checkpoint_set(self, stage: str, step: int, folder: Path) -> _FileSet | None:
        """A checkpoint that is to be uploaded, None where it is in the store. FileNotFoundError when it goes away."""
        prefix = checkpoint_prefix(stage, step)
        manifest = folder / CHECKPOINT_MANIFEST
        manifest_name = f"{prefix}{CHECKPOINT_MANIFEST}"
        status = manifest.stat()
        signature = (status.st_ino, status.st_size, status.st_mtime_ns)
        stored = self._inventory.files.get(manifest_name)
        if stored is not None:
            if self._uploaded.get(manifest_name) == signature:
                return None
            if stored.sha256 == file_sha256(manifest):
                self._uploaded[manifest_name] = signature
                return None
        parts, validation_cer = read_checkpoint(folder)
        files = {f"{prefix}{name}": folder / name for name in sorted(parts)}
        files[manifest_name] = manifest
        return _FileSet(prefix, stage, files, step, validation_cer)

    def _upload_set(self, file_set: _FileSet) -> None:
        began_s = time.monotonic()
        inventory = self._inventory
        work = inventory.works.get(file_set.stage)
        links = self._link(file_set)
        entries = {}
        for name, path in links.items():
            entries[name] = Entry(bytes=path.stat().st_size, sha256=file_sha256(path))
        if file_set.step is not None and not self._is_intact(file_set, links, entries):
            return
        if inventory.uploading != entries:
            # Parts of another set, or of another content, are of no use any more.
            inventory.drop([*inventory.uploading, *inventory.below(file_set.prefix)])
            if file_set.step is not None:
                inventory.checkpoints.get(file_set.stage, {}).pop(file_set.step, None)
            inventory.uploading = entries
            self._sent = {}
            self._stored.save()

        *parts, last = entries
        for name in parts:
            if time.monotonic() >= self._small_due_s:
                self._upload_small(read_contents(self._run))
            if self._sent.get(name) != entries[name]:
                self._stored.check()
                self._store.upload(name, links[name], self._stored.is_stopped)
                self._sent[name] = entries[name]
        # With the rows of metrics up to the checkpoint, before it counts.
        contents = read_contents(self._run)
        self._follow_works(contents)
        if inventory.works.get(file_set.stage) != work:
            # Its folder was moved aside meanwhile: it is uploaded from where it is now.
            inventory.drop(list(entries))
            return
        self._upload_small(contents)
        self._stored.check()
        self._store.upload(last, links[last], self._stored.is_stopped)
        inventory.files.update(entries)
        inventory.uploading = {}
        if file_set.step is not None:
            inventory.checkpoints.setdefault(file_set.stage, {})[file_set.step] = file_set.validation_cer
        self._stored.save()
        remove_path(self._staging("set"))

        details: dict[str, float] = {"bytes": sum(entry.bytes for entry in entries.values())}
        details["seconds"] = round(time.monotonic() - began_s, 3)
        if file_set.step is None:
            self._run.append_event("model_uploaded", stage=file_set.stage, **details)
        else:
            self._run.append_event("checkpoint_uploaded", stage=file_set.stage, step=file_set.step, **details)

    def _link(self, file_set: _FileSet) -> dict[str, Path]:
        """Hard links to the files of a set; the files themselves where there are no such links."""
        folder = self._staging("set")
        remove_path(folder)
        folder.mkdir(parents=True)
        links = {}
        for number, (name, path) in enumerate(file_set.files.items()):
            links[name] = folder / f"{number}"
            try:
                os.link(path, links[name])
            except FileNotFoundError:
                raise
            # On another disk, or on a file system without them.
            except OSError:
                links[name] = path
        return links

    def _is_intact(self, file_set: _FileSet, links: dict[str, Path], entries: dict[str, Entry]) -> bool:
        """Whether a checkpoint is what was written; one that is not is named, and stays out of the store."""
        manifest_name = f"{file_set.prefix}{CHECKPOINT_MANIFEST}"
        folder = file_set.files[manifest_name].parent
        for part in read_json(links[manifest_name])["files"]:
            if entries[f"{file_set.prefix}{part['name']}"] != Entry(bytes=part["bytes"], sha256=part["sha256"]):
                self._damaged.add(folder)
                self._run.append_event(
                    "upload_skipped",
                    stage=file_set.stage,
                    step=file_set.step,
                    reason=f"{part['name']} of the checkpoint is not what was written",
                )
                return False
        return True

    # What follows from what is there.

    def _follow_works(self, contents: Contents) -> None:
        for stage in self._stored.follow_works(contents.works):
            self._named_latest.pop(stage, None)

    def _name_latest(self) -> None:
        """Let `latest` of each stage name its newest checkpoint in the store."""
        for stage, newest in self.stored_checkpoints().items():
            if self._named_latest.get(stage) != newest:
                self._stored.check()
                name = self._run.stage(stage).checkpoint(newest).name
                self._store.write(f"{stage}/{LATEST}", f"{name}\n".encode())
                self._named_latest[stage] = newest

    def _retire(self) -> None:
        """Let those checkpoints in the store go that the settings no longer keep."""
        inventory = self._inventory
        for stage, config in self._retention.items():
            steps = inventory.checkpoints.get(stage, {})
            if not steps:
                continue
            for step in sorted(steps.keys() - retained(steps, max(steps), config)):
                # Its manifest first: what is left of it then is no checkpoint to anybody.
                names = inventory.below(checkpoint_prefix(stage, step))
                inventory.drop(sorted(names, key=lambda name: not name.endswith(CHECKPOINT_MANIFEST)))
                del steps[step]
                self._stored.is_saved = False

    def _clear_away(self) -> None:
        """Remove what is no part of the run any more, once the inventory in the store does not name it."""
        inventory = self._inventory
        if not self._stored.is_saved:
            self._stored.save()
        if not inventory.removing:
            return
        for name in inventory.removing:
            if name not in inventory.files:
                self._stored.check()
                self._store.remove(name)
                self._uploaded.pop(name, None)
        inventory.removing = []
        self._stored.save()

    def _staging(self, part: str) -> Path:
        folder = self._run.path / STAGING / part
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _signatures(files: Mapping[str, LocalFile]) -> dict[str, Signature]:
    return {name: file.signature for name, file in files.items()}


def _copy(path: Path, copy: Path) -> Entry:
    """Copy what a file holds now, which may be appended to meanwhile."""
    digest = hashlib.sha256()
    with open_regular(path) as source, copy.open("wb") as target:
        left = num_bytes = os.fstat(source.fileno()).st_size
        while left > 0:
            piece = source.read(min(COPY_BYTES, left))
            if not piece:
                # It was cut back, as a resumed stage does.
                break
            digest.update(piece)
            target.write(piece)
            left -= len(piece)
    return Entry(bytes=num_bytes - left, sha256=digest.hexdigest())
