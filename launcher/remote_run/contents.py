"""What of a run folder belongs into a store, and in which way each part of it comes there whole.

Small files (state, recipe, events, metrics, logs, tokenizer, report, results) change while the run goes on; each is an
object that is replaced. A finished model, a stage's units and a checkpoint are sets of files, of which all count or
none. Not stored: what processes of this host tell each other, what the corpus was prepared into, which is made again
from its sources, and what W&B has for its own server.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data.files import is_file_name, read_bounded, read_json
from launcher.remote_run.inventory import Entry, checkpoint_of, is_object_name
from launcher.run_folder import CHECKPOINT_MANIFEST, RunFolder, StageFolder, write_text

# Of the run folder itself. The last may lie there, as copies from a store.
NOT_STORED = ("corpus", "nodes", "run.lock", "job.sbatch", "nodes.txt", "lease.json", "inventory.json")
SLURM_LOG_PREFIX = "slurm-"
# Of a stage's folder; its checkpoints are looked at by themselves.
CHECKPOINTS = "checkpoints"
NOT_STORED_OF_STAGE = ("heartbeats", "stop", "hostfile", "launch.json", "wandb", "export", CHECKPOINTS)
# Of a stage's folder: sets of files.
SETS = ("model", "adapter", "units")
NO_STAGES = ("tokenizer",)
# In a stage's folder: which work it holds, whatever the folder is called.
WORK_FILE = ".work"
MAX_WORK_BYTES = 100
MAX_DEPTH = 7

# By inode, size and time of change: another one is another content.
Signature = tuple[int, int, int]


@dataclass(frozen=True)
class LocalFile:
    """A file of a run folder."""

    path: Path
    signature: Signature

    @property
    def num_bytes(self) -> int:
        return self.signature[1]


@dataclass
class Contents:
    """The files of a run folder that belong into its store, by the names of their objects.

    `sets` are by what their names begin with, `checkpoints` are the folders by stage and step.
    """

    small: dict[str, LocalFile] = field(default_factory=dict)
    sets: dict[str, dict[str, LocalFile]] = field(default_factory=dict)
    checkpoints: dict[str, dict[int, Path]] = field(default_factory=dict)
    works: dict[str, str] = field(default_factory=dict)

    def is_in_set(self, name: str) -> bool:
        """Whether an object is one of a set that is here."""
        return any(name in files for files in self.sets.values())


def read_contents(run: RunFolder) -> Contents:
    """List a run folder; a stage's folder that holds no work of a name yet gets one."""
    contents = Contents()
    with os.scandir(run.path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name in NOT_STORED or entry.name.startswith(SLURM_LOG_PREFIX) or entry.name.startswith("."):
                continue
            # A link may lead to a folder of somebody else.
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if entry.name not in NO_STAGES and is_file_name(entry.name):
                    _read_stage(run.stage(entry.name), contents)
                else:
                    _read_files(Path(entry.path), entry.name, contents.small)
            else:
                _read_file(entry, entry.name, contents.small)
    return contents


def belongs_in_store(name: str) -> bool:
    """Whether an object of that name is one that a run folder gives to its store, or a checkpoint's.

    What processes of a host tell each other is not taken from anybody else's inventory.
    """
    parts = name.split("/")
    if parts[0] in NOT_STORED or parts[0].startswith(SLURM_LOG_PREFIX):
        return False
    if len(parts) > 1 and parts[1] == CHECKPOINTS:
        return checkpoint_of(name) is not None
    return len(parts) == 1 or parts[0] in NO_STAGES or parts[1] not in NOT_STORED_OF_STAGE


def read_work(stage: StageFolder) -> str | None:
    """Which work a stage's folder holds; None where nobody has named it yet."""
    with suppress(OSError, ValueError):
        text = read_bounded(stage.path / WORK_FILE, MAX_WORK_BYTES).decode("ascii")
        return text.strip() or None
    return None


def write_work(stage: StageFolder, work: str) -> None:
    """Say which work a stage's folder holds. Its own folder is made where there is none."""
    write_text(stage.path / WORK_FILE, f"{work}\n")


def read_checkpoint(folder: Path) -> tuple[dict[str, Entry], float | None]:
    """The parts of a checkpoint, by their names in its folder, and its validation/cer. ValueError where its manifest is
    none, OSError where it cannot be read."""
    try:
        manifest = read_json(folder / CHECKPOINT_MANIFEST)
        parts = {}
        for file in manifest["files"]:
            if not is_file_name(file["name"]):
                raise ValueError(f"{folder / CHECKPOINT_MANIFEST} names a part {file['name']!r:.80}")
            parts[file["name"]] = Entry(bytes=file["bytes"], sha256=file["sha256"])
        return parts, manifest.get("validation_cer")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CHECKPOINT_MANIFEST} is not that of a checkpoint: {error!r:.300}") from None


def _read_stage(stage: StageFolder, contents: Contents) -> None:
    work = read_work(stage)
    if work is None:
        work = uuid.uuid4().hex
        write_work(stage, work)
    contents.works[stage.name] = work
    # A folder that is moved aside at this moment is seen whole at the next look.
    with suppress(FileNotFoundError), os.scandir(stage.path) as entries:
        for entry in entries:
            name = f"{stage.name}/{entry.name}"
            if entry.name in NOT_STORED_OF_STAGE or entry.name.startswith(".") or entry.is_symlink():
                continue
            if not entry.is_dir():
                _read_file(entry, name, contents.small)
            elif entry.name in SETS:
                files: dict[str, LocalFile] = {}
                _read_files(Path(entry.path), name, files)
                if files:
                    contents.sets[f"{name}/"] = files
            else:
                _read_files(Path(entry.path), name, contents.small)
        checkpoints = {}
        for step in stage.checkpoint_steps():
            folder = stage.checkpoint(step)
            if (folder / CHECKPOINT_MANIFEST).is_file():
                checkpoints[step] = folder
        if checkpoints:
            contents.checkpoints[stage.name] = checkpoints


def _read_files(folder: Path, prefix: str, files: dict[str, LocalFile]) -> None:
    for entry in _entries(folder):
        name = f"{prefix}/{entry.name}"
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if not entry.is_dir():
            _read_file(entry, name, files)
        elif name.count("/") < MAX_DEPTH:
            _read_files(Path(entry.path), name, files)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _read_file(entry: "os.DirEntry[str]", name: str, files: dict[str, LocalFile]) -> None:
    if not is_object_name(name):
        return
    with suppress(FileNotFoundError):
        status = entry.stat(follow_symlinks=False)
        if entry.is_file(follow_symlinks=False):
            files[name] = LocalFile(Path(entry.path), (status.st_ino, status.st_size, status.st_mtime_ns))
