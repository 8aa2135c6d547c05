"""Checkpoints that are whole or absent, and that do not know the topology that wrote them.

A checkpoint is a folder `step-00000400`: one `rank-00000.safetensors` per process with the intervals of the flattened
parameters and moments that the process owns, and `manifest.json` with the shape of every tensor, the interval that
each file holds of it and the SHA-256 of each file. Any process of any later topology reads the intervals it needs.

Written to a hidden folder, flushed, renamed; only then does `latest` name it and older ones go. A save that fails
leaves the previous checkpoints as they were and training goes on.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launcher.errors import CheckpointError
from launcher.run_folder import StageFolder, flush_folder, write_json, write_text
from launcher.training.parallel import Fragment

FORMAT = 1
WEIGHT, BUFFER = "weight", "buffer"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """The interval [start, stop) of a flattened tensor, stored under `kind/name` in a file."""

    file: str
    kind: str
    name: str
    start: int
    stop: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


def save(
    stage: StageFolder,
    step: int,
    parts: Iterable[Fragment],
    shapes: dict[str, list[int]],
    buffers: dict[str, Tensor],
    trainer: dict[str, Any],
    keep_last: int,
) -> bool:
    """Write the checkpoint of `step`; collective. False, with the reason logged, when any process could not.

    `parts` are what this process owns; `buffers` are equal everywhere and written by the first process; `trainer` is
    what else a resumed run needs, as JSON.
    """
    folder = stage.checkpoints / f".step-{step:08d}.tmp"
    rank = dist.get_rank()

    def prepare() -> None:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def write() -> None:
        pieces = _write_rank_file(folder, rank, parts, buffers if rank == 0 else {})
        write_json(folder / f"rank-{rank:05d}.json", pieces)

    def commit() -> None:
        if rank == 0:
            _commit(stage, folder, step, shapes, trainer)
            _retire(stage, keep_last)

    for action in (prepare, write, commit):
        if not _all_succeed(action, f"checkpoint of step {step}"):
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            return False
    return True


def _all_succeed(action: Callable[[], None], what: str) -> bool:
    """Run an action on every process; False everywhere when it failed anywhere."""
    succeeded = torch.ones(1)
    try:
        action()
    except (OSError, SafetensorError) as error:
        logger.warning("The %s was not written: %s. Training goes on; the previous checkpoint stays.", what, error)
        succeeded.zero_()
    dist.all_reduce(succeeded, op=dist.ReduceOp.MIN)
    return bool(succeeded.item())


def _write_rank_file(folder: Path, rank: int, parts: Iterable[Fragment], buffers: dict[str, Tensor]) -> dict[str, Any]:
    file = f"rank-{rank:05d}.safetensors"
    tensors, pieces = {}, []

    def add(kind: str, name: str, start: int, values: Tensor) -> None:
        piece = Piece(file, kind, name, start, start + values.numel())
        pieces.append(vars(piece))
        tensors[piece.key] = values.detach().cpu().clone()

    for part in parts:
        if part.writes:
            add(WEIGHT, part.name, part.start, part.values)
            for kind, values in part.state.items():
                add(kind, part.name, part.start, values)
    for name, buffer in buffers.items():
        add(BUFFER, name, 0, buffer.flatten())
    path = folder / file
    save_file(tensors, path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return {"pieces": pieces, "file": {"name": file, "bytes": path.stat().st_size, "sha256": _sha256(path)}}


def _commit(stage: StageFolder, folder: Path, step: int, shapes: dict[str, list[int]], trainer: dict[str, Any]) -> None:
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    manifest = {
        "format": FORMAT,
        "step": step,
        "trainer": trainer,
        "shapes": shapes,
        "files": [record["file"] for record in records],
        "pieces": [piece for record in records for piece in record["pieces"]],
    }
    write_json(folder / "manifest.json", {"sha256": _digest(manifest), **manifest})
    for path in folder.glob("rank-*.json"):
        path.unlink()
    flush_folder(folder)
    final = stage.checkpoint(step)
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
    flush_folder(stage.checkpoints)
    write_text(stage.checkpoints / "latest", final.name + "\n")


def _retire(stage: StageFolder, keep_last: int) -> None:
    for step in stage.checkpoint_steps()[:-keep_last]:
        shutil.rmtree(stage.checkpoint(step))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoint:
    """A checkpoint on disk, checked against its manifest on opening unless another process has done that.

    Raises CheckpointError when a file is missing, shorter than it was, or not what was written.
    """

    def __init__(self, folder: Path, verify: bool = True):
        self.folder = folder
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            intact = manifest.pop("sha256") == _digest(manifest)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"The checkpoint {folder} has no readable manifest: {error!r}.") from None
        if not intact:
            raise CheckpointError(f"{folder / 'manifest.json'} is not what was written: its own SHA-256 differs.")
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"The checkpoint {folder} has format {manifest['format']}; this version reads formats up to {FORMAT}."
            )
        self.step: int = manifest["step"]
        self.trainer: dict[str, Any] = manifest["trainer"]
        self.shapes: dict[str, list[int]] = manifest["shapes"]
        self._files = manifest["files"]
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for record in manifest["pieces"]:
            piece = Piece(**record)
            self._pieces.setdefault((piece.kind, piece.name), []).append(piece)
        if verify:
            self._verify()
        self._open: dict[str, Any] = {}

    def _verify(self) -> None:
        for file in self._files:
            path = self.folder / file["name"]
            if not path.exists():
                raise CheckpointError(f"The checkpoint {self.folder} lacks its part {file['name']}.")
            if path.stat().st_size != file["bytes"]:
                raise CheckpointError(
                    f"{path} has {path.stat().st_size} bytes where {file['bytes']} were written: it was cut short."
                )
            if _sha256(path) != file["sha256"]:
                raise CheckpointError(f"{path} is not what was written: its SHA-256 differs from the manifest's.")

    def fill(self, part: Fragment) -> None:
        """Copy this checkpoint's values and optimizer state into a fragment, whoever wrote them."""
        self._copy(WEIGHT, part.name, part.start, part.values)
        for kind, values in part.state.items():
            self._copy(kind, part.name, part.start, values)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer whole, in fp32, by its name in an unspread model."""
        return {name: self.whole(self.kinds(name)[0], name) for name in self.shapes}

    def kinds(self, name: str) -> list[str]:
        """What is stored of a tensor: "buffer", or "weight" and the optimizer's state."""
        return [kind for kind, stored in self._pieces if stored == name]

    def whole(self, kind: str, name: str) -> Tensor:
        """One kind of a tensor, put together from every process's part, in fp32."""
        values = torch.empty(self.shapes[name])
        self._copy(kind, name, 0, values.view(-1))
        return values

    @torch.no_grad()
    def _copy(self, kind: str, name: str, start: int, values: Tensor) -> None:
        stop, found = start + values.numel(), 0
        for piece in self._pieces.get((kind, name), []):
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low < high:
                stored = self._file(piece.file).get_slice(piece.key)[low - piece.start : high - piece.start]
                values[low - start : high - start].copy_(stored)
                found += high - low
        if found != stop - start:
            raise CheckpointError(
                f"The checkpoint {self.folder} holds {found} of the {stop - start} values [{start}, {stop}) of "
                f"{kind} {name}: it is of another model, or a process did not write its part."
            )

    def _file(self, name: str):
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]


def newest_intact(stage: StageFolder) -> Checkpoint | None:
    """The newest checkpoint that is what was written; damaged ones are logged and passed over. None when none is."""
    for step in reversed(stage.checkpoint_steps()):
        try:
            return Checkpoint(stage.checkpoint(step))
        except CheckpointError as error:
            logger.warning("%s The next older checkpoint is tried.", error)
    return None
