"""A folder that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from data.files import flush_folder, remove_path
from launcher.errors import ConfigError


def check_is_free(folder: Path, option: str = "--out") -> None:
    """ConfigError when something is in the way: nothing is lost in a folder that somebody filled."""
    is_empty_folder = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty_folder:
        raise ConfigError(f"{folder} is there already. Remove it, or name another folder with {option}.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `folder`, which takes its name when the block ends well.

    After an error nothing is left; after a kill the hidden folder is, which the next export removes. ConfigError when
    `folder` holds something, or cannot be written.
    """
    check_is_free(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove_path(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            # Files too: a rename that survives a power cut must not name content that does not.
            flush_folder(path)
        remove_path(folder)
        temporary.rename(folder)
        flush_folder(folder.parent)
    # A full disk is no OSError of safetensors.
    except (OSError, SafetensorError) as error:
        remove_path(temporary)
        raise ConfigError(
            f"The export could not be written to {folder}: {error}. Make room there, or mend what is named, and give "
            "the same command again."
        ) from None
    except BaseException:
        remove_path(temporary)
        raise
