"""`inventory.json` of a run in a store: which objects are whole, by name, size and SHA-256.

A store's listing may lag behind and comes in any order, so nobody lists: what the inventory does not name is not part
of the run. It is replaced in one step, and only by the launcher that holds the run's lease.

    files        objects that are whole. Those of a checkpoint or a model come in together, when the last is there
    changing     small files that are being written anew: what is there is as `files` or as `changing` says
    uploading    objects of a checkpoint or a model that is on its way; nobody reads them
    removing     objects that are no part of the run any more, and may still be there
    works        of each stage's folder, the work that it holds: a folder that is moved aside keeps it
    checkpoints  the steps of each stage whose checkpoints are whole, with their validation/cer

What is in the last four tells the next launcher, after a kill, what to clear away.
"""

import json
import re
import uuid
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from data.files import parse_json
from launcher.errors import ConfigError
from launcher.run_folder import CHECKPOINT_NAME

INVENTORY = "inventory.json"
FORMAT = 1
# A name of an object: it becomes a path below a folder of this user.
OBJECT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,199}){0,7}")


class Entry(BaseModel, frozen=True, strict=True):
    """A file's content."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Stored(BaseModel, strict=True):
    format: int
    id: str
    recipe: str | None = None
    files: dict[str, Entry]
    changing: dict[str, Entry]
    uploading: dict[str, Entry]
    removing: list[str]
    works: dict[str, str]
    checkpoints: dict[str, dict[str, float | None]]


@dataclass
class Inventory:
    """What a run has in a store. `id` names this version of it, `version` is the store's own name of that."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: str | None = None
    files: dict[str, Entry] = field(default_factory=dict)
    changing: dict[str, Entry] = field(default_factory=dict)
    uploading: dict[str, Entry] = field(default_factory=dict)
    removing: list[str] = field(default_factory=list)
    works: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, dict[int, float | None]] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes, version: str | None, url: str) -> "Inventory":
        """Read an inventory that anybody may have written; ConfigError when it is none."""
        try:
            stored = _Stored.model_validate(parse_json(content))
            names = [*stored.files, *stored.changing, *stored.uploading, *stored.removing]
            for name in names:
                if not is_object_name(name):
                    raise ValueError(f"it names {name[:80]!r}, which is no file of a run")
            for stage in [*stored.works, *stored.checkpoints]:
                if not is_object_name(stage) or "/" in stage:
                    raise ValueError(f"it names a stage {stage[:80]!r}")
            checkpoints = {}
            for stage, steps in stored.checkpoints.items():
                checkpoints[stage] = {int(step): cer for step, cer in steps.items()}
        except (ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{url}/{INVENTORY} is not the inventory of a run: {reason}. Choose another --run-dir, or put the "
                "object back from a copy."
            ) from None
        if stored.format > FORMAT:
            raise ConfigError(
                f"{url}/{INVENTORY} has format {stored.format}; this version reads formats up to {FORMAT}. Go on with "
                "the version of Chorus that wrote it."
            )
        return cls(
            stored.id,
            version,
            stored.files,
            stored.changing,
            stored.uploading,
            stored.removing,
            stored.works,
            checkpoints,
        )

    def to_json(self) -> bytes:
        entries = {}
        for key in ("files", "changing", "uploading"):
            entries[key] = {name: entry.model_dump() for name, entry in sorted(getattr(self, key).items())}
        value: dict[str, Any] = {
            "format": FORMAT,
            "id": self.id,
            **entries,
            "removing": sorted(set(self.removing)),
            "works": self.works,
            "checkpoints": self.checkpoints,
        }
        return json.dumps(value, ensure_ascii=False).encode()

    def below(self, prefix: str) -> dict[str, Entry]:
        """The whole objects whose names begin with a prefix."""
        return {name: entry for name, entry in self.files.items() if name.startswith(prefix)}

    def drop(self, names: list[str]) -> None:
        """Let objects be no part of the run any more; they are to be removed."""
        for name in names:
            self.files.pop(name, None)
            self.changing.pop(name, None)
            self.uploading.pop(name, None)
        self.removing += names


def is_object_name(name: str) -> bool:
    """Whether a name from an inventory leads to a file below a run's folder, and nowhere else."""
    return OBJECT_NAME.fullmatch(name) is not None


def checkpoint_prefix(stage: str, step: int) -> str:
    """What the names of a checkpoint's objects begin with."""
    return f"{stage}/checkpoints/step-{step:08d}/"


def checkpoint_of(name: str) -> tuple[str, int] | None:
    """The stage and the step of the checkpoint that an object belongs to; None for other objects."""
    parts = PurePosixPath(name).parts
    if len(parts) != 4 or parts[1] != "checkpoints":
        return None
    match = CHECKPOINT_NAME.fullmatch(parts[2])
    if match is None:
        return None
    return parts[0], int(match[1])
