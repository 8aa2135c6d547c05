"""`chorus new`: a recipe of one's own, begun from another with its comments."""

import argparse
import json
import re
from pathlib import Path

from data.files import replacing
from launcher.errors import ConfigError
from launcher.plain_text import printable
from launcher.recipe import load_recipe
from launcher.recipe.loading import find_recipe, read_recipe_text

# A setting at the top of a recipe: its line, and those below that are indented.
SECTION = r"^{key}:.*(?:\n[ \t]+.*)*$"


def new(options: argparse.Namespace) -> int:
    folder = Path(options.folder).expanduser()
    file = folder / "recipe.yaml"
    if file.exists():
        raise ConfigError(f"{file} is there already, and it is yours; choose another folder, or remove it.")
    # What a run folder, a batch job and a project of W&B may be called.
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.absolute().name.lower()).strip("-_") or "mine"

    changes = {"name": name}
    if options.manifest and options.shards:
        raise ConfigError("Give --manifest or --shards, not both: the recipe begins with one corpus.")
    if options.manifest:
        manifest = Path(options.manifest).expanduser().absolute()
        if not manifest.exists():
            raise ConfigError(f"There is no manifest {manifest}.")
        changes["corpus"] = json.dumps({"name": "folder", "manifest": str(manifest)}, ensure_ascii=False)
    elif options.shards:
        changes["corpus"] = json.dumps({"name": "shards", "shards": options.shards}, ensure_ascii=False)
    source = find_recipe(options.like)
    if "corpus" in changes:
        # Before anything is written: a corpus that a run would refuse is refused here.
        load_recipe(source, [f"{key}={value}" for key, value in changes.items()])

    text = read_recipe_text(source)
    for key, value in changes.items():
        text = _with_section(text, key, value)
    # A name of a file may hold ends of lines, behind which settings would stand.
    like = " ".join(printable(options.like).split())
    beginning = f"# {name}: a recipe of your own. It begins as {like}, of which it is said:\n#\n"
    with replacing(file) as part:
        part.write_text(beginning + text, encoding="utf-8")
    print(f"{file} is a recipe of your own, begun as {options.like}.")
    print(f"  chorus plan {file}    # what it would run, its sizes and its memory; starts nothing")
    print(f"  chorus run {file}     # the run lies in runs/{name}")
    return 0


def _with_section(text: str, key: str, value: str) -> str:
    """The recipe's text with another value of a setting; one that it leaves to the recipe it extends is added."""
    line = f"{key}: {value}"
    section = re.compile(SECTION.format(key=key), re.MULTILINE)
    if section.search(text):
        return section.sub(lambda _: line, text, count=1)
    return f"{text.rstrip()}\n\n{line}\n"
