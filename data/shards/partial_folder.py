"""The folder that a split is written into: a hidden sibling that takes the name of the split when it is whole."""

import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError
from data.shards.journal import JOURNAL, is_locked

SUFFIX = ".partial"

logger = logging.getLogger(__name__)


@contextmanager
def partial_folder(folder: Path, is_resumable: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A sibling folder that takes the name of `folder` when the block succeeds and vanishes when it fails.

    Where `is_resumable` says so of what is in it, it stays after a failure, and is given to the next who asks for it on
    this host; what else was left by processes that have ended is removed. Raises DataError when another process writes
    the same folder, or wrote it meanwhile.
    """
    # The host is part of the name because process ids say nothing about another host's processes.
    prefix = f".{folder.name}.{socket.gethostname()}-"
    partial = folder.with_name(f"{prefix}{os.getpid()}{SUFFIX}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    is_resumed = False
    for path in sorted(folder.parent.iterdir()):
        if not path.name.startswith(f".{folder.name}.") or not path.name.endswith(SUFFIX):
            continue
        if not path.name.startswith(prefix):
            logger.warning(
                "%s was left by a preparation on another host, or is written there. If none runs there, remove it, "
                "or go on from its finished shards by renaming it to %s.",
                path,
                f"{prefix}0{SUFFIX}",
            )
            continue
        # Both would do all of the work, and only one of them could give its folder the name.
        if is_locked(path):
            raise DataError(
                f"Another process is writing {folder.name} into {path}; wait until it has ended, or end it, and repeat "
                "the command."
            )
        if _is_in_use(path, path.name.removeprefix(prefix).removesuffix(SUFFIX)):
            continue
        if not is_resumed and is_resumable(path):
            path.rename(partial)
            is_resumed = True
        else:
            shutil.rmtree(path)

    partial.mkdir(exist_ok=is_resumed)
    try:
        yield partial
        # Last, so that a split is under its name whole or not at all.
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise DataError(
                f"Another process, maybe on another host, wrote {folder} meanwhile; what this one wrote is removed. "
                "Repeat the command, which compares what is there."
            ) from error
    except BaseException:
        if not is_resumable(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_in_use(path: Path, process_id: str) -> bool:
    # In a container, each start may give its processes the same numbers: what has ours is none of this one's, and what
    # has a journal that nobody holds was left, whoever has the number now.
    if process_id == str(os.getpid()) or (path / JOURNAL).is_file():
        return False
    try:
        # Signal 0 is not delivered; only the process' existence is checked.
        os.kill(int(process_id), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        # It belongs to another user, so it runs.
        return True
    return True
