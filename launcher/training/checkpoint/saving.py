"""Writes checkpoints while training goes on.

On the training thread of each process, `Saver.start` copies what the process owns to CPU memory. A thread of its own
writes, flushes and hashes the copy in a hidden folder. The processes tell each other in the collective that every step
has anyway (`progress`, `settle`) when all parts are written; then the first process seals the folder with the
manifest, renames it, and only after that lets `latest` name it and older ones go. A save that fails leaves the
previous checkpoints as they were and training goes on. One save at a time: the next one waits for it.
"""

import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from data.files import file_sha256, flush_folder, remove_path
from launcher.recipe import CheckpointConfig
from launcher.run_folder import StageFolder, write_json, write_text
from launcher.training.checkpoint.layout import (
    AVERAGE,
    BUFFER,
    FORMAT,
    MANIFEST,
    WEIGHT,
    Piece,
    manifest_digest,
    part_name,
    record_name,
)
from launcher.training.checkpoint.retention import has_room, retire
from model.export import save_tensors

if TYPE_CHECKING:
    from launcher.training.fragments import Fragment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What a checkpoint holds.

    `parts` are what this process owns; `buffers` and their averages are equal everywhere and written by the
    first process; `shapes` are
    those of all tensors over all processes; `trainer` is what else a resumed run needs, as JSON; `validation_cer` is
    the character error rate of exactly these weights, None when they were not validated.
    """

    step: int
    parts: "Iterable[Fragment]"
    shapes: dict[str, list[int]]
    buffers: dict[str, Tensor]
    trainer: dict[str, Any]
    validation_cer: float | None = None
    buffer_averages: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Save:
    """A save under way, as one process sees it. `commit` is only there in the first process, once all have written."""

    step: int
    folder: Path
    num_parts: int
    header: dict[str, Any]
    write: Future[bool]
    settled: bool = False
    commit: Future[bool] | None = None


class Saver:
    """Saves of one stage. Every process builds one; `start`, `settle` and `finish` are called by all alike."""

    def __init__(self, stage: StageFolder, config: CheckpointConfig, device: torch.device):
        self._stage = stage
        self._config = config
        self._device = device
        self._rank = dist.get_rank()
        # One thread, so that a commit comes after the write before it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None

    def start(self, state: State) -> bool:
        """Begin a save, after the one under way; collective. Returns once the state is copied, so it may change then.

        False everywhere, with the reason logged, when there is no room for it or its folder cannot be made.
        """
        self.finish()
        parts = [part for part in state.parts if part.writes]
        # They are equal everywhere.
        buffers = {}
        if self._rank == 0:
            buffers = {BUFFER: state.buffers, AVERAGE: state.buffer_averages}

        local_bytes = 0
        for part in parts:
            local_bytes += part.values.nbytes
            for values in part.state.values():
                local_bytes += values.nbytes
        state_bytes = int(self._all_reduce(local_bytes, dist.ReduceOp.SUM))

        # Hidden until it is whole: only `_commit` gives it the name that readers look for.
        folder = self._stage.checkpoints / f".{self._stage.checkpoint(state.step).name}.tmp"
        prepared = True
        if self._rank == 0:
            prepared = self._prepare(folder, state_bytes, state.step)
        if not self._all(prepared):
            return False

        tensors, pieces = _copy_to_cpu(part_name(self._rank), parts, buffers)
        header = {
            "format": FORMAT,
            "step": state.step,
            "validation_cer": state.validation_cer,
            # A copy through JSON: the trainer's sums go on changing, and this step's are wanted.
            "trainer": json.loads(json.dumps(state.trainer)),
            "shapes": state.shapes,
        }
        write = self._thread.submit(_write_part, folder, self._rank, state.step, tensors, pieces)
        self._save = _Save(state.step, folder, dist.get_world_size(), header, write)
        return True

    def progress(self) -> dict[str, int]:
        """This process's contribution to the sums that `settle` wants: still writing, and could not write."""
        save = self._save
        writing = False
        failed = False
        if save and not save.settled:
            writing = not save.write.done()
            failed = not writing and not save.write.result()
        return {"save/writing": int(writing), "save/failed": int(failed)}

    def settle(self, num_writing: float, num_failed: float) -> None:
        """Seal the save under way if all processes have written their part, given the sums over all of them."""
        if self._save and not self._save.settled and num_writing == 0:
            self._conclude(self._save, complete=num_failed == 0)

    def finish(self) -> bool:
        """Wait until the save under way is in place or given up; collective. False when it was given up."""
        save = self._save
        if save is None:
            return True
        if not save.settled:
            self._conclude(save, complete=self._all(save.write.result()))
        self._save = None

        in_place = True
        if self._rank == 0:
            in_place = save.commit is not None and save.commit.result()
        return self._all(in_place)

    def _conclude(self, save: _Save, complete: bool) -> None:
        save.settled = True
        if self._rank != 0:
            return
        if complete:
            save.commit = self._thread.submit(_commit, self._stage, save, self._config)
        else:
            save.commit = self._thread.submit(_discard, save)

    def _prepare(self, folder: Path, state_bytes: int, step: int) -> bool:
        try:
            self._stage.checkpoints.mkdir(parents=True, exist_ok=True)
            for left_behind in self._stage.checkpoints.glob(".step-*.tmp"):
                remove_path(left_behind)
            if not has_room(self._stage.checkpoints, state_bytes, step):
                return False
            folder.mkdir()
        except OSError as error:
            _log_failure(step, error)
            return False
        return True

    def _all(self, succeeded: bool) -> bool:
        return bool(self._all_reduce(int(succeeded), dist.ReduceOp.MIN))

    def _all_reduce(self, value: int, operation: Any) -> float:
        # fp64 holds counts of bytes exactly, up to 2^53.
        number = torch.tensor(float(value), dtype=torch.float64, device=self._device)
        dist.all_reduce(number, op=operation)
        return number.item()


def _log_failure(step: int, error: Exception) -> None:
    logger.warning(
        "The checkpoint of step %d was not written: %s. Training goes on; the previous checkpoint stays.", step, error
    )


def _copy_to_cpu(
    file: str, parts: "Iterable[Fragment]", buffers: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Copies in CPU memory of what this process writes, and the records of their pieces."""
    tensors = {}
    pieces = []

    def add(kind: str, name: str, start: int, values: Tensor) -> None:
        piece = Piece(file, kind, name, start, start + values.numel())
        pieces.append(vars(piece))
        tensors[piece.key] = values.detach().to("cpu", copy=True)

    for part in parts:
        add(WEIGHT, part.name, part.start, part.values)
        for kind, values in part.state.items():
            add(kind, part.name, part.start, values)
    # A buffer before its average: the first kind of a tensor is what the model has.
    for kind, values_of_kind in buffers.items():
        for name, buffer in values_of_kind.items():
            add(kind, name, 0, buffer.flatten())
    return tensors, pieces


def _write_part(
    folder: Path,
    rank: int,
    step: int,
    tensors: dict[str, Tensor],
    pieces: list[dict[str, Any]],
) -> bool:
    """Write and flush one process's tensors, and beside them the record that the manifest is made of."""
    path = folder / part_name(rank)
    try:
        save_tensors(tensors, path)
        with path.open("rb") as written:
            os.fsync(written.fileno())
        file = {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        write_json(folder / record_name(rank), {"pieces": pieces, "file": file})
    except (OSError, SafetensorError) as error:
        _log_failure(step, error)
        return False
    finally:
        # The future of this call lives on; the copies must not.
        tensors.clear()
    return True


def _commit(stage: StageFolder, save: _Save, config: CheckpointConfig) -> bool:
    """Make a save whose parts are all written a checkpoint, then the latest one; then retire older checkpoints."""
    final = stage.checkpoint(save.step)
    try:
        files = []
        pieces = []
        # By the number of their rank and not as a listing shows them: on a shared file system a listing may lag behind,
        # and a checkpoint without a part is none.
        records = [save.folder / record_name(rank) for rank in range(save.num_parts)]
        for path in records:
            record = json.loads(path.read_text(encoding="utf-8"))
            files.append(record["file"])
            pieces += record["pieces"]
        manifest = {**save.header, "files": files, "pieces": pieces}
        write_json(save.folder / MANIFEST, {"sha256": manifest_digest(manifest), **manifest})
        for path in records:
            path.unlink()

        # One that is damaged: a run goes on from its newest intact one and reaches the steps of later ones again.
        remove_path(final)
        # Renamed when everything in it is on the disk: whoever sees the name may rely on the content.
        save.folder.rename(final)
        flush_folder(stage.checkpoints)
    except (OSError, ValueError) as error:
        _log_failure(save.step, error)
        return _discard(save)

    try:
        # `latest` moves only now, and older checkpoints go only after that: at no moment is there none.
        write_text(stage.latest_file, final.name + "\n")
        retire(stage, save.step, config)
    except OSError as error:
        logger.warning("The checkpoint of step %d is in place, but older ones were not cleared: %s", save.step, error)
    logger.info("step %d: checkpoint in place", save.step)
    return True


def _discard(save: _Save) -> bool:
    remove_path(save.folder)
    return False
