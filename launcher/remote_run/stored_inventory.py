"""The inventory of a run as its launcher writes it: replaced in one step, and only while the launcher has the run."""

import uuid
from collections.abc import Callable, Mapping

from data.files import parse_json
from launcher.remote_run.identity import Identity, write_identity
from launcher.remote_run.inventory import INVENTORY, Inventory
from launcher.remote_run.object_store import ChangedError, ObjectStore
from launcher.run_folder import RunFolder

# Of a stage's objects, the one that no inventory names: it is for whoever looks into the bucket.
LATEST = "checkpoints/latest"


class WaitError(Exception):
    """Nothing may be written at the moment."""


class StoredInventory:
    """The inventory of a store, which is changed here and then saved. `is_saved` is False while that is due."""

    def __init__(self, run: RunFolder, store: ObjectStore, inventory: Inventory, may_write: Callable[[], bool]) -> None:
        """`may_write` says whether this launcher still has the run."""
        self.inventory = inventory
        self.is_saved = True
        self.stopped = False
        self._run = run
        self._store = store
        self._may_write = may_write
        # Of the inventories that were sent, those of which one is in the store.
        self._ids = [inventory.id]

        # What a former launcher was killed at: small files of either content are written again, halves of sets go.
        for name in inventory.changing:
            inventory.files.pop(name, None)
        inventory.drop([*inventory.changing, *inventory.uploading])

    def is_stopped(self) -> bool:
        return self.stopped

    def check(self) -> None:
        """Raise WaitError where nothing may be written."""
        if self.stopped:
            raise WaitError("uploading was ended")
        if not self._may_write():
            raise WaitError("the lease of the run could not be renewed, so that another launcher may have the run")

    def save(self) -> None:
        """Replace the inventory in the store. The run folder remembers of which one it is the folder."""
        self.check()
        self.is_saved = False
        inventory = self.inventory
        inventory.id = uuid.uuid4().hex
        self._ids.append(inventory.id)
        write_identity(self._run, Identity(url=self._store.url, ids=self._ids))
        try:
            inventory.version = self._store.replace(INVENTORY, inventory.to_json(), inventory.version)
        except ChangedError:
            content, version = self._store.read_version(INVENTORY)
            # An attempt of ours whose answer was lost did arrive, or this launcher has lost the run.
            if content is not None and parse_json(content).get("id") not in self._ids:
                raise WaitError("another launcher has written the inventory of the run") from None
            inventory.version = self._store.replace(INVENTORY, inventory.to_json(), version)
        self._ids = [inventory.id]
        self.is_saved = True

    def follow_works(self, works: Mapping[str, str]) -> list[str]:
        """Move in the store what was moved here: a stage's folder that was set aside, or taken up again. `works` says
        what each stage's folder holds; returned are the stages whose former objects are gone from their place."""
        inventory = self.inventory
        if all(inventory.works.get(stage) == work for stage, work in works.items()):
            return []
        places = {work: stage for stage, work in works.items()}
        moves = {}
        left = []
        for stage, work in inventory.works.items():
            if places.get(work, stage) != stage:
                moves[stage] = places[work]
        while True:
            # First what goes to a name that is free, or has become free.
            free = [stage for stage, place in moves.items() if place not in inventory.works]
            if not free:
                break
            self._move(free[0], moves.pop(free[0]))
            left.append(free[0])
        for stage, work in works.items():
            if inventory.works.get(stage, work) != work:
                inventory.drop([f"{stage}/{LATEST}", *inventory.below(f"{stage}/")])
                inventory.checkpoints.pop(stage, None)
                left.append(stage)
            inventory.works[stage] = work
        self.save()
        return left

    def _move(self, stage: str, place: str) -> None:
        inventory = self.inventory
        inventory.drop(list(inventory.uploading))
        for name, entry in inventory.below(f"{stage}/").items():
            inventory.uploading[f"{place}/{name.removeprefix(f'{stage}/')}"] = entry
        self.save()
        for name in inventory.uploading:
            self.check()
            self._store.copy(f"{stage}/{name.removeprefix(f'{place}/')}", name)
        inventory.files.update(inventory.uploading)
        inventory.uploading = {}
        inventory.drop([f"{stage}/{LATEST}", *inventory.below(f"{stage}/")])
        inventory.works[place] = inventory.works.pop(stage)
        if stage in inventory.checkpoints:
            inventory.checkpoints[place] = inventory.checkpoints.pop(stage)
        self.save()
