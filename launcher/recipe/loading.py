"""Recipes from files and to files.

`load_recipe` reads a file or a built-in recipe by its name, applies `key=value` overrides, fills in every
default and checks it all, so that nothing is started from a recipe that cannot work. `dump` writes the
resolved recipe, which loads again to the same one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import read_bounded
from data.shards.index import is_url
from launcher.bounded_yaml import MAX_CHARACTERS
from launcher.errors import ConfigError
from launcher.recipe.augmentation import with_absolute_recordings
from launcher.recipe.bases import with_base_models
from launcher.recipe.checks import check_recipe
from launcher.recipe.corpora import complete_corpus, with_absolute_corpus
from launcher.recipe.file_limits import check_file, check_no_credentials
from launcher.recipe.former_defaults import former_defaults_of, with_former_defaults
from launcher.recipe.hostfile import read_topology
from launcher.recipe.schema import Recipe
from launcher.recipe.search import with_absolute_files
from launcher.recipe.seeds import repeat_stages
from launcher.recipe.stages import AdaptStage, DistillStage, EvaluateStage, PretrainStage
from launcher.recipe.validation_messages import validate
from launcher.recipe.yaml_io import apply_override, dump_values, nearest, parse_recipe
from launcher.run_files import RECIPE_BEGINNING, RECIPE_END
from launcher.run_folder import is_folder

BUILT_IN_RECIPES = Path(__file__).parents[1] / "recipes"


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe: a path, or the name of a built-in one."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = _built_in_names()
    if name_or_path in known:
        return BUILT_IN_RECIPES / f"{name_or_path}.yaml"
    raise ConfigError(
        f"{name_or_path!r} is neither a recipe file nor the name of a built-in recipe{nearest(name_or_path, known)}"
    )


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), count_slots: bool = False, of_run: bool = False
) -> Recipe:
    """Read a recipe, apply `a.b=value` overrides in order, and check it; ConfigError says what is wrong.

    Relative paths in the corpus section, of a teacher or a start, a search and the hostfile are taken from the current
    folder and made absolute. With `count_slots` the hostfile is read, and its slots are the number of processes;
    without, as on the hosts that it names, it need not be there. `of_run`: the file is what a run keeps of its recipe
    and command line, so that what only a command line may say is allowed in it.
    """
    path = find_recipe(str(name_or_path))
    values = _read(path)
    if not of_run:
        check_file(values, path)
    complete_corpus(values)
    for override in overrides:
        apply_override(values, override)
        # At once: the next override may go by the label of a corpus that this one gave.
        complete_corpus(values)
    if not of_run:
        check_no_credentials(values, f"The recipe {path}")
    # After the overrides, so that a setting of a repeated stage reaches all its repetitions.
    repeat_stages(values)

    recipe = with_absolute_paths(validate(Recipe, values, f"The recipe {path}"))
    # What a run keeps has every setting of its time written out: one that is not there was not there to be set.
    if of_run:
        recipe = with_former_defaults(recipe, former_defaults_of(values["stages"]))
    # After the former defaults, which are of the base too.
    recipe = with_base_models(recipe)
    # Before the checks, which compare lanes and experts with the number of processes.
    if count_slots and recipe.cluster.hostfile:
        recipe = with_counted_slots(recipe, recipe.cluster.hostfile)
    check_recipe(recipe)
    return recipe


def read_recipe_text(path: Path) -> str:
    """The text of a recipe's file; ConfigError when it cannot be read, is too large, or is not UTF-8."""
    try:
        # A character has four bytes at most.
        return read_bounded(path, 4 * MAX_CHARACTERS).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The recipe {path} is not UTF-8: {error.reason} at byte {error.start}. Convert it, for instance with "
            "iconv."
        ) from None
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from None


def _read(path: Path) -> dict[str, Any]:
    """The plain values of a recipe's file; what it `extends` gives those that it does not.

    A section replaces the other's as a whole; `stages` may be a mapping of stages' names to keys that are replaced, or
    to null, which leaves a stage out. With `copy: STAGE` among its keys a new name is a stage like that one, which it
    follows, and its keys reach into the sections of the other's.
    """
    values = parse_recipe(read_recipe_text(path), f"The recipe {path}")
    if "extends" not in values:
        return values

    extended = values.pop("extends")
    known = _built_in_names()
    if extended not in known:
        raise ConfigError(
            f"The recipe {path} extends {extended!r}, which is not a built-in recipe{nearest(str(extended), known)}"
        )
    base = _read(find_recipe(extended))
    changes = values.get("stages")
    if not isinstance(changes, dict):
        return base | values

    stages = {stage["name"]: stage for stage in base["stages"]}
    for name, keys in changes.items():
        # A list of names: what a recipe gives may be no key of a mapping.
        if name not in stages and isinstance(keys, dict) and keys.get("copy") in list(stages):
            stages = _with_copy(stages, name, keys)
            continue
        if name not in stages or not isinstance(keys, dict | None):
            raise ConfigError(
                f"The recipe {path} changes stage {name!r} of {extended} to {keys!r}; give keys of one of its "
                f"stages, or null to leave it out{nearest(str(name), list(stages))}"
            )
        if keys is None:
            del stages[name]
        else:
            stages[name] |= keys
    values["stages"] = list(stages.values())
    return base | values


def _with_copy(stages: dict[str, Any], name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The stages, and after the one that `keys` copies a new one: its keys where `keys` has no other."""
    with_copy = {}
    for other, stage in stages.items():
        with_copy[other] = stage
        if other == keys["copy"]:
            changes = {key: value for key, value in keys.items() if key != "copy"}
            with_copy[name] = _merge(stage, changes) | {"name": name}
    return with_copy


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with those of the changes in their place, section within section; neither is changed."""
    merged = dict(values)
    for key, value in changes.items():
        before = values.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            value = _merge(before, value)
        merged[key] = value
    return merged


def _built_in_names() -> list[str]:
    return sorted(file.stem for file in BUILT_IN_RECIPES.glob("*.yaml"))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe, its paths taken from the current folder and made absolute: stages run in processes whose
    current folder may be another."""
    stages = []
    for stage in recipe.stages:
        changes: dict[str, Any] = {}
        if isinstance(stage, DistillStage):
            if stage.teacher:
                changes["teacher"] = _absolute_model(stage.teacher)
            changes["teachers"] = tuple(
                teacher.model_copy(update={"model": _absolute_model(teacher.model)}) for teacher in stage.teachers
            )
            folder = stage.distill.cache.folder
            if folder:
                cache = stage.distill.cache.model_copy(update={"folder": folder.expanduser().absolute()})
                changes["distill"] = stage.distill.model_copy(update={"cache": cache})
        elif isinstance(stage, PretrainStage) and stage.initialize_from:
            changes["initialize_from"] = _absolute_model(stage.initialize_from)
        elif isinstance(stage, AdaptStage):
            changes["base"] = _absolute_model(stage.base)
            keep = stage.adapt.keep_split
            if keep is not None and not is_url(keep):
                changes["adapt"] = stage.adapt.model_copy(update={"keep_split": _absolute_model(keep)})
        elif isinstance(stage, EvaluateStage):
            changes["search"] = with_absolute_files(stage.search)
        if not isinstance(stage, EvaluateStage) and stage.augment is not None:
            changes["augment"] = with_absolute_recordings(stage.augment)
        stages.append(stage.model_copy(update=changes))

    cluster = recipe.cluster
    if cluster.hostfile:
        cluster = cluster.model_copy(update={"hostfile": cluster.hostfile.expanduser().absolute()})
    corpus = with_absolute_corpus(recipe.corpus)
    augment = with_absolute_recordings(recipe.augment)
    sections = {"corpus": corpus, "augment": augment, "stages": tuple(stages), "cluster": cluster}
    if recipe.tokenizer.model:
        model = recipe.tokenizer.model.expanduser().absolute()
        sections["tokenizer"] = recipe.tokenizer.model_copy(update={"model": model})
    return recipe.model_copy(update=sections)


def _absolute_model(model: str) -> str:
    """A folder as an absolute path; the name of a stage as it is."""
    if is_folder(model):
        return str(Path(model).expanduser().absolute())
    return model


def with_counted_slots(recipe: Recipe, hostfile: Path) -> Recipe:
    """Make the slots of the hostfile the number of processes; ConfigError when the recipe gives another one."""
    cluster = recipe.cluster
    slots = read_topology(hostfile, cluster.include, cluster.exclude).processes
    # model_fields_set holds what the recipe gives: a default of 1 is nobody's choice.
    if "processes" in cluster.model_fields_set and cluster.processes != slots:
        raise ConfigError(
            f"cluster.processes is {cluster.processes}, but the hosts of {hostfile} that are used have {slots} slots "
            f"together, one for each process. Pass --processes {slots}, leave the number out of the recipe, or choose "
            "other hosts with cluster.include and cluster.exclude."
        )
    return recipe.model_copy(update={"cluster": cluster.model_copy(update={"processes": slots})})


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out, between a first and a last line that tell whether
    it is whole."""
    return RECIPE_BEGINNING + dump_values(recipe.model_dump(mode="json")) + RECIPE_END
