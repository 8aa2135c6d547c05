"""Reads what a run folder stores, one function per file.

Each checks what it reads and says in one paragraph what is wrong with a file that another program wrote, that was cut
short, or that a later version made. ConfigError: the folder is not what was meant. DataError: a result in it is torn.
"""

from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import is_file_name, parse_json, read_bounded
from launcher.errors import ConfigError
from launcher.run_folder import RunFolder, StageFolder, is_count, is_number, read_json

STATE_FORMAT = 1
# Of the files in an evaluation's `analysis` folder.
ANALYSIS_FORMAT = 1
# As data.text.tokenizer bounds it, which takes long to import.
MAX_PIECES = 10**6
# What a run's recipe.yaml begins and ends with, so that one that was cut within its last section is known. YAML takes
# the first for a comment and the second for the end of a document. Copies of earlier versions have neither.
RECIPE_BEGINNING = "# The recipe of a run, every default written out. A line of three dots ends it.\n"
RECIPE_END = "...\n"
# Of a row of metrics.jsonl, what status, report and comparison compute with.
ROW_NUMBERS = ("time", "loss", "step_s", "data_wait", "audio_s_per_s", "validation_s", "save_stall_s")
# What state.json holds of every stage that was ever started.
RECORD_KEYS = {"kind": str, "status": str, "fingerprint": str, "settings": dict, "inputs": dict}


def read_state(run: RunFolder) -> dict[str, Any] | None:
    """Return the content of state.json, None when there is none; ConfigError when it is not that of a run."""
    # A file that holds null reads as one that is not there.
    if not run.state_file.exists():
        return None
    try:
        state = read_json(run.state_file)
    except (OSError, ValueError) as error:
        raise _no_state(run, f"cannot be read as JSON ({_reason(error)})") from None
    if not isinstance(state, dict):
        raise _no_state(run, f"holds {_kind(state)} where a mapping with format, recipe and stages belongs")

    for key, kind in {"format": int, "recipe": str, "stages": dict}.items():
        if not isinstance(state.get(key), kind):
            raise _no_state(run, f"has {_kind(state.get(key))} as its {key}: another program wrote it")
    if state["format"] > STATE_FORMAT:
        raise ConfigError(
            f"{run.state_file} has format {state['format']}; this version reads formats up to {STATE_FORMAT}. Go on "
            "with the version of Chorus that made the run."
        )
    for name, record in state["stages"].items():
        if not is_file_name(name):
            raise _no_state(run, f"names a stage {name[:80]!r}, which is no name of a folder")
        problem = _record_problem(record)
        if problem:
            raise _no_state(run, f"has, of stage {name!r}, {problem}")
    return state


def _record_problem(record: Any) -> str:
    """What is wrong with the record of a stage; empty when nothing is."""
    if not isinstance(record, dict):
        return f"{_kind(record)} as its record"
    for key, kind in RECORD_KEYS.items():
        if not isinstance(record.get(key), kind):
            return f"{_kind(record.get(key))} as its {key}"
    # Runs of earlier versions have none.
    if not isinstance(record.get("corpus_states", {}), dict):
        return f"{_kind(record['corpus_states'])} as its corpus_states"
    if record["status"] == "done" and "output" not in record:
        return "no output, although it is done"
    return ""


def _no_state(run: RunFolder, problem: str) -> ConfigError:
    return ConfigError(
        f"{run.path} is not a run folder that Chorus can read: {run.state_file.name} {problem}. Name the folder that "
        "`chorus run` printed; if it is this one, put the file back from a copy, or choose a new folder with --run-dir."
    )


def read_recipe_values(run: RunFolder) -> dict[str, Any]:
    """Return the plain values of the recipe that a run keeps; ConfigError when it is missing, cut or another's."""
    # Takes long to import, and the readers of JSON do without.
    import yaml

    from launcher.bounded_yaml import MAX_CHARACTERS, load_yaml

    try:
        # A character has four bytes at most.
        text = read_bounded(run.recipe_file, 4 * MAX_CHARACTERS).decode("utf-8")
        if text.startswith(RECIPE_BEGINNING) and not text.rstrip().endswith(f"\n{RECIPE_END.rstrip()}"):
            raise broken_recipe(run, "does not end with the three dots that its first line speaks of: it was cut short")
        values = load_yaml(text)
    except FileNotFoundError:
        raise broken_recipe(run, "is missing") from None
    # RecursionError and ValueError: sections nested without end, a number of thousands of digits, too many values.
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise broken_recipe(run, f"cannot be read ({_reason(error)})") from None
    if not isinstance(values, dict):
        raise broken_recipe(run, f"holds {_kind(values)} where a recipe belongs")
    stages = values.get("stages")
    if not isinstance(stages, list) or not stages:
        raise broken_recipe(run, f"has {_kind(stages)} as its stages")
    for stage in stages:
        if not isinstance(stage, dict) or not isinstance(stage.get("kind"), str):
            raise broken_recipe(run, f"has a stage without a kind ({str(stage)[:60]})")
        if not is_file_name(stage.get("name")):
            name = str(stage.get("name"))[:60]
            raise broken_recipe(run, f"has a stage of name {name!r}, which is no name of a folder")
        if "steps" in stage and not is_count(stage["steps"]):
            raise broken_recipe(run, f"has {_kind(stage['steps'])} as the steps of stage {stage['name']}")
    return values


def broken_recipe(run: RunFolder, problem: str) -> ConfigError:
    """Return the error of a run whose copy of the recipe cannot be used."""
    return ConfigError(
        f"The run in {run.path} cannot be read: {run.recipe_file.name}, its copy of the recipe, {problem}. The same "
        "`chorus run` command as before writes it anew, and does not repeat what is done."
    )


def parse_metrics_row(line: bytes) -> dict[str, Any] | None:
    """Return a row of metrics.jsonl; None for a line that a kill cut short, or that is no row of ours."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not is_count(row.get("step")):
        return None
    # What is computed with; a metric that is not finite is written as null.
    for key in ROW_NUMBERS:
        if row.get(key) is not None and not is_number(row[key]):
            return None
    return row


def read_set_aside(stage: StageFolder) -> dict[str, Any] | None:
    """Return what state.json said of the work in a folder that was set aside; None where it was not, or is torn."""
    try:
        record = read_json(stage.record_file)
    except (OSError, ValueError):
        return None
    if record is None or _record_problem(record):
        return None
    return record


def read_done(stage: StageFolder) -> dict[str, Any]:
    """Return what done.json says of the end of a stage's processes; empty when it is not there or not theirs."""
    try:
        record = read_json(stage.done_file)
    except (OSError, ValueError):
        # The processes write it whole: what is torn is not their word that they are done.
        record = None
    if isinstance(record, dict):
        return record
    return {}


def read_evaluation(stage: StageFolder) -> dict[str, Any] | None:
    """Return the results of an evaluation, None when there are none yet; DataError when they are torn."""
    return _read_models(stage.evaluation_file)


def read_results(run: RunFolder) -> dict[str, Any] | None:
    """Return results.json, None when there is none yet; DataError when it is torn."""
    return _read_models(run.results_file)


def _read_models(path: Path) -> dict[str, Any] | None:
    """Read `{"models": {NAME: {SPLIT: {"cer": ...}, ...}}}`."""
    remedy = "Remove it, and run the same command as before: only the evaluation is done again."
    content = _read_mapping(path, remedy)
    if content is None:
        return None
    models = content.get("models")
    if not isinstance(models, dict):
        raise DataError(f"{path} has {_kind(models)} as its models, where results by model belong. {remedy}")
    for name, model in models.items():
        if not isinstance(model, dict):
            raise DataError(f"{path} has {_kind(model)} as the results of model {name!r}. {remedy}")
        examples = model.get("examples", [])
        if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
            raise DataError(f"{path} has examples of model {name!r} that are no list of utterances. {remedy}")
    return content


def read_statistics(path: Path) -> dict[str, Any]:
    """Return the features' `mean` and `std`, lists of numbers of one length, and what is beside them.

    DataError when the file is missing or torn.
    """
    remedy = "Remove it, and run the same command as before: the features are measured again."
    content = _read_mapping(path, remedy)
    if content is None:
        raise DataError(f"There is no {path}, which holds the features' statistics. Run the whole recipe.")
    for key in ("mean", "std"):
        values = content.get(key)
        are_numbers = isinstance(values, list) and all(map(is_number, values))
        if not are_numbers or not values:
            raise DataError(f"{path} has {_kind(values)} as its {key}, where a number per mel bin belongs. {remedy}")
    if len(content["mean"]) != len(content["std"]):
        raise DataError(f"{path} has {len(content['mean'])} means and {len(content['std'])} deviations. {remedy}")
    return content


def read_vocabulary_size(run: RunFolder) -> int | None:
    """Return the tokens of the run's tokenizer, None before it is trained; DataError when its file is torn."""
    path = run.tokenizer / "tokenizer.json"
    remedy = "Remove the folder, and run the same command as before: the tokenizer is trained again."
    content = _read_mapping(path, remedy)
    if content is None:
        return None
    size = content.get("vocabulary_size")
    if type(size) is not int or not 1 <= size <= MAX_PIECES:
        raise DataError(f"{path} has {_kind(size)} as its vocabulary_size that no tokenizer has. {remedy}")
    return size


def _read_mapping(path: Path, remedy: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} could not be read as JSON ({_reason(error)}). {remedy}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {_kind(content)} where a mapping belongs. {remedy}")
    return content


def _reason(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {dict: "a mapping", list: "a list", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "a number")
