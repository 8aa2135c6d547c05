"""Where a finished model lies that a user names: a folder, a stage of a run, a name that was given to one by `chorus
models promote`, or a model that comes with Chorus."""

from difflib import get_close_matches
from pathlib import Path

from data.files import is_file_name
from launcher.errors import CheckpointError
from launcher.registry.promotions import find_pointer, promoted_model, read_names
from launcher.remote_run import is_run_url

# One folder for each model that is part of the package, in the layout of a finished model.
PACKAGED_MODELS = Path(__file__).parents[1] / "packaged_models"


def packaged_models() -> list[str]:
    """The names of the models that come with Chorus."""
    names = []
    if PACKAGED_MODELS.is_dir():
        for folder in PACKAGED_MODELS.iterdir():
            if _holds_weights(folder):
                names.append(folder.name)
    return sorted(names)


def find_model(name: str) -> Path:
    """The folder of the finished model at RUN/STAGE or at the path itself, which may be in a store, or of the promoted
    or packaged model of that name.

    A folder of the user's goes before a promoted model, and that before a packaged one. CheckpointError where there is
    none, or where a promoted model is not what it was.
    """
    path = Path(name).expanduser()
    if is_run_url(name):
        # fsspec takes long to import.
        from launcher.remote_run.reading import Wanted, local_copy

        path = local_copy(name, Wanted.PART)
    for folder in (path / "model", path):
        if _holds_weights(folder):
            return folder
    pointer = find_pointer(name)
    if pointer is not None:
        return promoted_model(pointer)
    packaged = packaged_models()
    if name in packaged:
        return PACKAGED_MODELS / name

    # A single word, and nothing of that name here, is meant as the name of a model.
    if is_file_name(name) and not path.exists():
        promoted = read_names()
        offer = "This installation has no model of its own"
        if packaged:
            offer = f"This installation has {', '.join(packaged)}"
        if promoted:
            offer += f"; promoted are {', '.join(promoted)}"
        meant = ""
        for close in get_close_matches(name, [*packaged, *promoted], n=1):
            meant = f" Did you mean {close}?"
        raise CheckpointError(
            f"There is no model called {name}: no folder here has that name, and no model of Chorus.{meant} {offer}. "
            "Name a training stage that is done, such as runs/mini/student, or a model's folder."
        )
    raise CheckpointError(
        f"{path} holds no finished model: there is no *.safetensors in it nor in {path / 'model'}. "
        f"Name a training stage that is done, such as runs/mini/student; `chorus status` shows which are."
    )


def _holds_weights(folder: Path) -> bool:
    try:
        return any(folder.glob("*.safetensors"))
    except OSError:
        return False
