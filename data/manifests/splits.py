"""What splits are called: in manifests, and in the names of folders and files of others."""

import re
from collections.abc import Callable
from pathlib import Path

# What other tools call the splits that trainings read, in any case.
SPLIT_SYNONYMS = {
    "train": ("train", "training", "trn"),
    "dev": ("dev", "devel", "development", "valid", "validation", "validate", "val"),
    "test": ("test", "testing", "tst"),
}


def canonical_split(name: str) -> str:
    """What a split is called here: train, dev or test where its name means one of them, else as it is."""
    for split, synonyms in SPLIT_SYNONYMS.items():
        if name.lower() in synonyms:
            return split
    return name


def split_in_name(name: str) -> str:
    """The split that the name of a file begins with, as in train-000003.tar; empty where it is none that is known."""
    word = re.split(r"[^A-Za-z]", name, maxsplit=1)[0]
    if canonical_split(word) in SPLIT_SYNONYMS:
        return word
    return ""


def folders_of_splits(folder: Path, matches: Callable[[Path], bool]) -> dict[str, Path]:
    """The folders that match by their split: `folder` itself (""), or else those in it; empty where there is none."""
    if not folder.is_dir():
        return {}
    if matches(folder):
        return {"": folder}
    folders: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and matches(path):
            folders[path.name] = path
    return folders
