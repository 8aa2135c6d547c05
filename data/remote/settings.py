"""What a recipe may say of reading shards: retries, requests at once, and the size of the cache."""

import os
from pathlib import Path

from pydantic import BaseModel, Field

from data.errors import DataError

CACHE_VARIABLE = "CHORUS_CACHE"


# What a run may pass over, unless its recipe says otherwise.
MAX_QUARANTINED = 0.01


class StorageConfig(BaseModel, frozen=True, extra="forbid"):
    """How shards are read from where they lie, and how much may be broken. Nothing here changes what is computed."""

    max_quarantined: float = Field(
        default=MAX_QUARANTINED,
        ge=0,
        le=1,
        description="share of the utterances that may be quarantined before a stage ends with exit code 3",
    )

    retry_s: float = Field(
        default=60,
        ge=0,
        # Well below what the loader waits for one utterance.
        le=300,
        description="how long a read that fails is tried again, in s, before its utterance is quarantined",
    )
    connections: int = Field(
        default=16, ge=1, le=1024, description="utterances that a process requests at once from a remote store"
    )
    cache_gb: float = Field(
        default=20,
        ge=0,
        le=1e6,
        description="10^9 bytes of remote shards that a host keeps in $CHORUS_CACHE (~/.cache/chorus); 0: none",
    )

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 1e9)


def cache_folder() -> Path:
    """Where this host keeps remote ranges. DataError where the environment says nothing of it.

    It comes from the environment and never from a recipe: a recipe of somebody else names no place to write to.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "chorus"
    try:
        return Path.home() / ".cache" / "chorus"
    # In a container, for a user whom it does not know.
    except RuntimeError:
        raise DataError(
            f"There is no folder to keep remote shards in: this user has no home. Name one in {CACHE_VARIABLE}, or "
            "keep none with --set cluster.storage.cache_gb=0."
        ) from None
