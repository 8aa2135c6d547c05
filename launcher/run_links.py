"""Links in a run folder that lead out of it.

Logs, models and checkpoints are written where the folder has them, and old checkpoints are removed there: a link in a
run folder from somebody else would do so in another folder of this user. A link that stays inside of the run folder
does no such harm.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import ConfigError

CORPUS = "corpus"
CHECKPOINTS = "checkpoints"
# Weights & Biases keeps links there to the newest of its runs, and to its logs in the user's cache.
LEFT_TO_OTHERS = "wandb"
# RUN/STAGE/FOLDER/FILE, where FOLDER may be a checkpoint's or an export's own.
MAX_DEPTH = 5
# Of what RUN/corpus holds.
CORPUS_DEPTH = 2


def check_links(run: Path) -> list[Path]:
    """Return the links of a run folder through which its corpus, or checkpoints, lie on another disk.

    ConfigError for any other link that leads out of the folder.
    """
    links = []
    inside = os.path.realpath(run)
    for link in _links(run, 1):
        target = os.path.realpath(link)
        if target == inside or target.startswith(inside + os.sep):
            continue
        place = link.relative_to(run).parts
        is_usual = place[0] == CORPUS or (len(place) == 2 and place[1] == CHECKPOINTS)
        if not is_usual or not os.path.isdir(target):
            raise ConfigError(
                f"{link} is a link to {target}, out of the run folder, where no run has one: what the run writes and "
                "removes would be there. Remove the link, and look who put it there. Only RUN/corpus and "
                "RUN/STAGE/checkpoints may be links, to folders on another disk."
            )
        links.append(link)
    return links


def _links(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the links below a folder, those of a corpus down to its splits: there may be millions of shards."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_symlink():
                yield path
                continue
            is_left_out = entry.name == LEFT_TO_OTHERS and depth > 1
            if is_left_out or depth == MAX_DEPTH or not entry.is_dir(follow_symlinks=False):
                continue
            if depth == CORPUS_DEPTH and folder.name == CORPUS:
                continue
            yield from _links(path, depth + 1)
