"""The runs below folders that a user names: every folder that has a state.json, at most a few levels down.

Nothing inside of a run folder is looked at, so that neither its shards nor its links cost anything.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.errors import ConfigError
from launcher.run_folder import RunFolder

# RUNS/SWEEP/trials/RUN, and a folder per user or month above it.
MAX_DEPTH = 5
# Names that are looked at: somebody may name a folder of recordings, or the root of a disk.
MAX_ENTRIES = 200_000
MAX_RUNS = 5_000


def find_runs(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """Return the runs in or below some folders by their names: the path from the folder that was named.

    ConfigError for a folder that is not there.
    """
    runs: dict[str, RunFolder] = {}
    places: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is no folder. Name one that holds runs, or the folder of a run that `chorus run` printed."
            )
        for path in _run_folders(folder):
            place = os.path.realpath(path)
            # Two names may lead to one run, as RUNS and RUNS/RUN do.
            if place in places or len(runs) == MAX_RUNS:
                continue
            places.add(place)
            name = _name(path, folder, is_only=len(folders) == 1)
            if name in runs:
                name = str(path)
            runs[name] = RunFolder(path)
    return dict(sorted(runs.items()))


def _name(path: Path, folder: Path, is_only: bool) -> str:
    whole = path.absolute()
    if path == folder:
        return whole.name
    inside = str(path.relative_to(folder))
    if is_only:
        return inside
    return f"{folder.absolute().name}/{inside}"


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders in or below a folder, level by level."""
    level = [folder]
    num_entries = 0
    for depth in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for path in level:
            if (path / "state.json").is_file():
                yield path
                continue
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        num_entries += 1
                        # Runs on another disk are linked beside the others; deeper, a link may lead in a circle.
                        is_folder = entry.is_dir(follow_symlinks=depth == 0)
                        if is_folder and not entry.name.startswith("."):
                            below.append(Path(entry.path))
                        if num_entries > MAX_ENTRIES:
                            break
            # Of another user, or removed since it was listed.
            except OSError:
                continue
        if num_entries > MAX_ENTRIES:
            return
        level = sorted(below)
