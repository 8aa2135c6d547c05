"""A finished model with an adapter, as a folder that any command opens like another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from launcher.errors import CheckpointError


@contextmanager
def with_adapter(model: Path, adapter: str | None) -> Iterator[Path]:
    """Yield the model's folder, or that of the model with the adapter in a folder, which is removed in the end.

    CheckpointError where either cannot be read or the adapter is of another model.
    """
    if adapter is None:
        yield model
        return
    with TemporaryDirectory(prefix="chorus-adapted-") as temporary:
        folder = Path(temporary) / "model"
        write_adapted_model(folder, model, Path(adapter).expanduser())
        yield folder


def write_adapted_model(folder: Path, model: Path, adapter: Path) -> None:
    """Write a model with an adapter in it as a model folder of its own. CheckpointError as above, ConfigError when it
    cannot be written."""
    # Imports torch; commands that are given no adapter do without.
    from launcher.inference.finished_model import FinishedModel, write_finished_model
    from model.adapter_files import DESCRIPTION_FILE, adapted, read_adapter

    place = adapter
    # RUN/STAGE of an adaptation means its adapter.
    if not (place / DESCRIPTION_FILE).is_file() and (place / "adapter" / DESCRIPTION_FILE).is_file():
        place = place / "adapter"
    base = FinishedModel.load(model)
    try:
        recognizer = adapted(base.recognizer, read_adapter(place))
    except FileNotFoundError:
        raise CheckpointError(
            f"{adapter} holds no adapter: there is no {DESCRIPTION_FILE} in it. Name the folder adapter of a finished "
            "stage of kind adapt, such as runs/mine/speaker/adapter."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The adapter in {adapter} cannot be used with the model in {model}: {error}. Name the model that it was "
            "trained on; adapter.json says which (base)."
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_finished_model(folder, model, recognizer.config, base.features.config, recognizer.state_dict())
