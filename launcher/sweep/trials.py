"""The runs of a sweep, and what `sweep.json` keeps of them.

sweep.json      what was asked for, and of each run its settings, its state and the time it took
shared/1        the run of what the runs share: shards, tokenizer, and trainings that no setting of the sweep touches
trials/NAME     the runs
logs/NAME.log   what they printed
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.recipe import Recipe, load_recipe
from launcher.recipe.loading import dump
from launcher.run_folder import RunFolder, is_count, is_number, read_json, write_json
from launcher.stages.fingerprint import hash_value
from launcher.sweep.points import Axis, Point, make_points, name_points

SWEEP_FORMAT = 1
SWEEP_FILE = "sweep.json"
# waiting: to be started; interrupted: begun, and to go on; stopped_early: its validation was hopeless, it is over.
STATES = ("waiting", "running", "interrupted", "done", "failed", "stopped_early")
MAX_SEEDS = 100
MAX_TRIALS = 2000


@dataclass(frozen=True)
class SweepSpec:
    """What decides which runs a sweep has."""

    recipe: str
    overrides: tuple[str, ...]
    axes: tuple[str, ...]
    num_random: int | None
    num_seeds: int | None


@dataclass
class Trial:
    """A run of a sweep. `seconds` is the time that it ran, `reason` why it is in its state."""

    name: str
    point_name: str
    point: Point
    seed: int | None
    overrides: list[str]
    state: str = "waiting"
    seconds: float = 0.0
    exit_code: int | None = None
    reason: str = ""


class SweepFolder:
    """The files of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.file = self.path / SWEEP_FILE
        # Held as a run folder is.
        self.lock = RunFolder(self.path)

    def trial(self, trial: Trial) -> RunFolder:
        return RunFolder(self.path / "trials" / trial.name)

    def log(self, trial: Trial) -> Path:
        return self.path / "logs" / f"{trial.name}.log"

    def shared(self, number: int) -> RunFolder:
        return RunFolder(self.path / "shared" / str(number))


def is_sweep_folder(path: Path) -> bool:
    return (path / SWEEP_FILE).is_file()


def make_trials(spec: SweepSpec, axes: Sequence[Axis]) -> tuple[list[Trial], list[Recipe]]:
    """Return the runs of a sweep with their recipes, each checked; ConfigError that names the point which is wrong."""
    if spec.num_seeds is not None and not 1 <= spec.num_seeds <= MAX_SEEDS:
        raise ConfigError(f"--seeds is {spec.num_seeds}. Give the number of seeds, 1 to {MAX_SEEDS}.")
    base = load_recipe(spec.recipe, spec.overrides, count_slots=True)
    points = make_points(axes, spec.num_random, base.seed)
    seeds: list[int | None] = [None]
    if spec.num_seeds is not None:
        seeds = list(range(1, spec.num_seeds + 1))
    if len(points) * len(seeds) > MAX_TRIALS:
        raise ConfigError(
            f"The sweep would have {len(points) * len(seeds)} runs, more than {MAX_TRIALS}. Give fewer values or "
            "seeds, or draw some: --random N."
        )
    trials = []
    recipes = []
    for point_name, point in zip(name_points(points), points, strict=True):
        for seed in seeds:
            overrides = [*spec.overrides, *(f"{key}={value}" for key, value in point.items())]
            name = point_name
            if seed is not None:
                overrides.append(f"seeds=[{seed}]")
                name = f"{point_name}_seed-{seed}"
            try:
                recipes.append(load_recipe(spec.recipe, overrides, count_slots=True))
            except ConfigError as error:
                raise ConfigError(f"The run {name} of the sweep cannot be: {error}") from None
            trials.append(Trial(name, point_name, point, seed, overrides))
    return trials, recipes


def spec_hash(spec: SweepSpec, recipes: Sequence[Recipe]) -> str:
    """A SHA-256 over all that decides the results of a sweep: the resolved recipes of its runs."""
    return hash_value([dump(recipe) for recipe in recipes])


def read_sweep(folder: SweepFolder) -> dict[str, Any] | None:
    """Return the content of sweep.json, its trials as `Trial`; None without one, ConfigError when it is torn."""
    try:
        content = read_json(folder.file)
    except (OSError, ValueError) as error:
        raise _torn(folder, f"cannot be read ({' '.join(str(error).split())})") from None
    if content is None:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise _torn(folder, "does not have the keys of one")
    if content["format"] > SWEEP_FORMAT:
        raise ConfigError(
            f"{folder.file} has format {content['format']}; this version reads formats up to {SWEEP_FORMAT}. Go on "
            "with the version of Chorus that made the sweep."
        )
    records = content.get("trials")
    is_sound = isinstance(content.get("sha256"), str) and isinstance(content.get("recipe"), str)
    if not is_sound or not isinstance(records, list):
        raise _torn(folder, "lacks its recipe or its runs")
    trials = []
    for record in records:
        if not _is_trial(record):
            raise _torn(folder, "has a run with other keys than ours")
        trials.append(Trial(**{key: record[key] for key in Trial.__dataclass_fields__}))
    return {**content, "trials": trials}


def _is_trial(record: Any) -> bool:
    if not isinstance(record, dict) or not all(key in record for key in Trial.__dataclass_fields__):
        return False
    texts = [record["name"], record["point_name"], record["reason"], *record["overrides"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(record["point"], dict):
        return False
    is_seed = record["seed"] is None or is_count(record["seed"])
    return is_seed and record["state"] in STATES and is_number(record["seconds"])


def _torn(folder: SweepFolder, problem: str) -> ConfigError:
    return ConfigError(
        f"{folder.file} is not that of a sweep: it {problem}. Put it back from a copy, or choose a new folder with "
        "--run-dir."
    )


def write_sweep(folder: SweepFolder, spec: SweepSpec, sha256: str, recipe_name: str, trials: Sequence[Trial]) -> None:
    content = {
        "format": SWEEP_FORMAT,
        "recipe": recipe_name,
        "sha256": sha256,
        "asked": asdict(spec),
        "trials": [asdict(trial) for trial in trials],
    }
    write_json(folder.file, content)


def open_sweep(folder: SweepFolder, sha256: str, trials: Sequence[Trial]) -> list[Trial]:
    """Return the runs with what the folder knows of them; ConfigError where it holds something else than this sweep."""
    content = read_sweep(folder)
    if content is None:
        others = []
        if folder.path.is_dir():
            others = [path.name for path in folder.path.iterdir() if not path.name.startswith(".")]
        if others and others != [folder.lock.lock_file.name]:
            raise ConfigError(
                f"The folder {folder.path} is not that of a sweep: it holds {others[0]} and no {SWEEP_FILE}. Choose a "
                "new or empty folder with --run-dir."
            )
        return list(trials)
    if content["sha256"] != sha256:
        before = _asked(content)
        raise ConfigError(
            f"The sweep in {folder.path} was begun with other settings or another recipe ({before}), and its runs "
            "would not be comparable. Give these again, or choose a new folder with --run-dir."
        )
    known = {trial.name: trial for trial in content["trials"]}
    return [replace(known.get(trial.name, trial), overrides=trial.overrides) for trial in trials]


def _asked(content: dict[str, Any]) -> str:
    asked = content.get("asked")
    if not isinstance(asked, dict):
        return "which is not on record"
    words = [str(asked.get("recipe"))]
    words += [f"--over {axis}" for axis in asked.get("axes") or []]
    words += [f"--set {override}" for override in asked.get("overrides") or []]
    for key, option in (("num_random", "--random"), ("num_seeds", "--seeds")):
        if asked.get(key) is not None:
            words.append(f"{option} {asked[key]}")
    return " ".join(words)
