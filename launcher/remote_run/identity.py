"""`.store.json` of a run folder: which run in which store it is the folder of, and which state of that it has.

A folder whose inventory is still the one in the store is at least as far as the store. After another host has gone on
with the run it is not, and must not be uploaded over what that host did.
"""

from pydantic import BaseModel, ValidationError

from data.files import read_json
from launcher.errors import ConfigError
from launcher.run_folder import RunFolder, write_json


class Identity(BaseModel, strict=True):
    """The store's URL; the ids of the inventories of which the store has one, where nobody else wrote there; and
    whether the folder is still being filled from the store."""

    url: str
    ids: list[str]
    is_filling: bool = False


def read_identity(run: RunFolder) -> Identity | None:
    """Return what a run folder says of its store, None when it has none; ConfigError when it is torn."""
    try:
        return Identity.model_validate(read_json(run.store_file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{run.store_file}, which says what store the run folder belongs to, cannot be read: {reason}. Name "
            "another folder with --work-dir, which is then filled from the store."
        ) from None


def write_identity(run: RunFolder, identity: Identity) -> None:
    write_json(run.store_file, identity.model_dump())
