"""Names for finished models: `models/NAME` is a file that says which model is meant, and which ones were before.

A promotion replaces the file in one step, so that whoever reads it sees the model before or the one after. It holds the
SHA-256 of the model's folder: a name never stands for weights that changed since somebody chose them.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.files import is_file_name, read_json
from launcher.errors import CheckpointError, ConfigError
from launcher.run_folder import is_number, open_no_link, write_json
from launcher.stages.fingerprint import hash_folder

# In the current folder, as `runs` is.
MODELS_FOLDER = Path("models")
POINTER_FORMAT = 1
# Thousands of promotions.
MAX_POINTER_BYTES = 2**22


@dataclass(frozen=True)
class Promotion:
    """A model that a name stood for since a time (s since the epoch); `model` is the absolute path of its folder."""

    model: str
    sha256: str
    source: str
    note: str
    time: float


def promote(folder: Path, source: str, name: str, note: str = "", models_folder: Path = MODELS_FOLDER) -> Promotion:
    """Let a name stand for the finished model in a folder from now on; `source` is what the user called the model.

    ConfigError for a name that is none, or for a file that is no pointer in its place.
    """
    if not is_file_name(name):
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of a model: it needs letters, digits, dots, dashes and underscores, and "
            "begins with none of dot and dash. Choose another, such as production."
        )
    model = folder.absolute()
    sha256 = hash_folder(model)
    if sha256 is None:
        raise CheckpointError(f"{model} holds no files, and so no model that {name} could stand for.")
    promotion = Promotion(str(model), sha256, source, note, round(time.time(), 3))
    pointer = models_folder / name
    with _locked(models_folder):
        promotions = [*read_promotions(pointer), promotion]
        content = {"format": POINTER_FORMAT, "promotions": [asdict(entry) for entry in promotions]}
        write_json(pointer, content)
    return promotion


@contextmanager
def _locked(models_folder: Path) -> Iterator[None]:
    """Hold the folder of names: two promotions at once would each write the history without the other."""
    models_folder.mkdir(parents=True, exist_ok=True)
    with open_no_link(models_folder / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_promotions(pointer: Path) -> list[Promotion]:
    """Return what a name has stood for, the present model last; empty where there is no such name.

    ConfigError when the file is torn, or another program's.
    """
    try:
        content = read_json(pointer, MAX_POINTER_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _no_pointer(pointer, f"cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise _no_pointer(pointer, "does not have the keys of one")
    if content["format"] > POINTER_FORMAT:
        raise ConfigError(
            f"{pointer} has format {content['format']}; this version reads formats up to {POINTER_FORMAT}. Use the "
            "version of Chorus that wrote it."
        )
    records = content.get("promotions")
    if not isinstance(records, list) or not records:
        raise _no_pointer(pointer, "names no model")
    promotions = []
    for record in records:
        if not _is_promotion(record):
            raise _no_pointer(pointer, "has an entry that is no promotion")
        fields = {key: record[key] for key in Promotion.__dataclass_fields__}
        promotions.append(Promotion(**fields))
    return promotions


def _is_promotion(record: Any) -> bool:
    if not isinstance(record, dict) or not is_number(record.get("time")):
        return False
    for key in ("model", "sha256", "source", "note"):
        if not isinstance(record.get(key), str):
            return False
    return Path(record["model"]).is_absolute()


def _no_pointer(pointer: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"{pointer} is no name of a model: it {problem}. Put it back from a copy; or remove it, and name the model "
        f"again: chorus models promote RUN/STAGE {pointer.name}"
    )


def read_names(models_folder: Path = MODELS_FOLDER) -> dict[str, list[Promotion]]:
    """Return the promotions of every name in a folder of names; a file there that is no pointer is passed over."""
    names = {}
    if models_folder.is_dir():
        for path in sorted(models_folder.iterdir()):
            if not is_file_name(path.name) or not path.is_file():
                continue
            try:
                names[path.name] = read_promotions(path)
            # A README, or a model's own folder.
            except ConfigError:
                continue
    return names


def find_pointer(name: str, models_folder: Path = MODELS_FOLDER) -> Path | None:
    """Return the file of a name: a path to it, or a name in the folder of names; None where there is none."""
    if is_file_name(name) and (models_folder / name).is_file():
        return models_folder / name
    path = Path(name).expanduser()
    # Any file may stand at a path that was meant as a model's: it is a pointer only if it reads as one.
    if path.is_file():
        try:
            read_promotions(path)
        except ConfigError:
            return None
        return path
    return None


def promoted_model(pointer: Path) -> Path:
    """Return the folder of the model that a name stands for now.

    CheckpointError when it is gone, or is not what was promoted.
    """
    promotion = read_promotions(pointer)[-1]
    model = Path(promotion.model)
    remedy = (
        f"Put that model back, or name another one: chorus models promote RUN/STAGE {pointer.name}. `chorus models "
        f"history {pointer.name}` lists those before it."
    )
    sha256 = hash_folder(model)
    if sha256 is None:
        raise CheckpointError(f"{pointer} stands for the model in {model}, where there is none any more. {remedy}")
    if sha256 != promotion.sha256:
        raise CheckpointError(
            f"{pointer} stands for the model in {model} as it was when it got this name (SHA-256 "
            f"{promotion.sha256[:12]}), and what is there now is another one ({sha256[:12]}): a stage was trained "
            f"again, or files were changed. {remedy}"
        )
    return model
