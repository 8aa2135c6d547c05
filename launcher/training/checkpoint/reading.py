"""Opens checkpoints, finds damage, and puts tensors together again. Needs no process group and no DeepSpeed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.files import file_sha256, read_json
from launcher.errors import CheckpointError
from launcher.run_folder import StageFolder
from launcher.training.checkpoint.layout import FORMAT, MANIFEST, WEIGHT, Piece, find_problem, manifest_digest

if TYPE_CHECKING:
    from launcher.training.fragments import Fragment

logger = logging.getLogger(__name__)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint; CheckpointError when it is missing, not what was written, or too new."""
    try:
        manifest = read_json(folder / MANIFEST)
        intact = manifest.pop("sha256") == manifest_digest(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {folder} has no readable manifest: {error!r:.300}.") from None
    if not intact:
        raise CheckpointError(f"{folder / MANIFEST} is not what was written: its own SHA-256 differs.")
    version = manifest.get("format")
    if type(version) is not int or version > FORMAT:
        raise CheckpointError(
            f"The checkpoint {folder} has format {version}; this version reads formats up to {FORMAT}."
        )
    problem = find_problem(manifest)
    if problem:
        raise CheckpointError(f"{folder / MANIFEST} is not that of a checkpoint: {problem}.")
    return manifest


class Checkpoint:
    """A checkpoint on disk, checked against its manifest on opening unless another process has done that.

    Reading all of a large one takes minutes: `on_progress` is called before each file. Raises CheckpointError when a
    file is missing, shorter than it was, or not what was written.
    """

    def __init__(self, folder: Path, verify: bool = True, on_progress: Callable[[], None] = lambda: None):
        self.folder = folder
        manifest = read_manifest(folder)
        self.step: int = manifest["step"]
        self.trainer: dict[str, Any] = manifest["trainer"]
        self.shapes: dict[str, list[int]] = manifest["shapes"]
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for record in manifest["pieces"]:
            piece = Piece(**record)
            self._pieces.setdefault((piece.kind, piece.name), []).append(piece)
        self._open_files: dict[str, Any] = {}
        if verify:
            self._verify(manifest["files"], on_progress)

    def _verify(self, files: list[dict[str, Any]], on_progress: Callable[[], None]) -> None:
        """Compare every file with its record."""
        for file in files:
            on_progress()
            path = self.folder / file["name"]
            if not path.exists():
                raise CheckpointError(f"The checkpoint {self.folder} lacks its part {file['name']}.")
            num_bytes = path.stat().st_size
            # Before the digest, which would not tell a file that was cut short from a changed one.
            if num_bytes != file["bytes"]:
                raise CheckpointError(
                    f"{path} has {num_bytes} bytes where {file['bytes']} were written: it was cut short."
                )
            try:
                intact = file_sha256(path) == file["sha256"]
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error}.") from None
            if not intact:
                raise CheckpointError(f"{path} is not what was written: its SHA-256 differs from the manifest's.")

    def fill(self, fragment: "Fragment") -> None:
        """Copy this checkpoint's values and optimizer state into a fragment, whoever wrote them."""
        self._copy(WEIGHT, fragment.name, fragment.start, fragment.values)
        for kind, values in fragment.state.items():
            self._copy(kind, fragment.name, fragment.start, values)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer whole, in fp32, by its name in an unspread model."""
        weights = {}
        for name in self.shapes:
            # A buffer has one kind; of a parameter's, the weight is stored before the optimizer's state.
            kind = self.kinds(name)[0]
            weights[name] = self.whole(kind, name)
        return weights

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
        """Fill [start, start + len(values)) of a flattened tensor from the pieces that overlap it."""
        stop = start + values.numel()
        num_copied = 0
        for piece in self._pieces.get((kind, name), []):
            low = max(start, piece.start)
            high = min(stop, piece.stop)
            if low >= high:
                continue
            if piece.file not in self._open_files:
                path = self.folder / piece.file
                try:
                    self._open_files[piece.file] = safe_open(path, framework="pt")
                except (OSError, SafetensorError) as error:
                    raise CheckpointError(f"{path} cannot be read: {error}.") from None
            # A slice, so that only the bytes of the overlap are read.
            stored = self._open_files[piece.file].get_slice(piece.key)
            values[low - start : high - start].copy_(stored[low - piece.start : high - piece.start])
            num_copied += high - low
        if num_copied != stop - start:
            raise CheckpointError(
                f"The checkpoint {self.folder} holds {num_copied} of the {stop - start} values [{start}, {stop}) of "
                f"{kind} {name}: it is of another model, or a process did not write its part."
            )


def newest_intact(
    stage: StageFolder, up_to: int | None = None, on_progress: Callable[[], None] = lambda: None
) -> Checkpoint | None:
    """The newest checkpoint that is what was written, of all or of steps `up_to` one; None when there is none.

    Damaged ones are logged and passed over. `on_progress` is that of `Checkpoint`.
    """
    for step in reversed(stage.checkpoint_steps()):
        if up_to is not None and step > up_to:
            continue
        try:
            return Checkpoint(stage.checkpoint(step), on_progress=on_progress)
        except CheckpointError as error:
            logger.warning("%s The next older checkpoint is tried.", error)
    return None


def open_checkpoint(stage: StageFolder, step: int | None = None) -> Checkpoint:
    """The checkpoint of a step, or the newest intact one; CheckpointError saying which there are when it is none."""
    steps = stage.checkpoint_steps()
    if step is None:
        newest = newest_intact(stage)
        if newest is None:
            raise CheckpointError(
                f"Stage {stage.name} has no intact checkpoint in {stage.checkpoints} to make a model of; there are "
                f"{len(steps)} in all. Run the recipe again: the stage goes on from its beginning."
            )
        return newest
    if step not in steps:
        raise CheckpointError(
            f"Stage {stage.name} has no checkpoint of step {step} in {stage.checkpoints}. Those in place are of steps "
            f"{', '.join(map(str, steps)) or 'none'}; keep_every of the stage's checkpoint settings keeps more."
        )
    return Checkpoint(stage.checkpoint(step))
