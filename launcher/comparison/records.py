"""Records of trainings: small files that outlast the runs, from which a comparison is written again or extended.

A folder of records is one table. `evaluated.json` says on what its models were evaluated and in which order they are
to be read; STAGE.json holds one training: sizes, cost, and the errors of each utterance. Records of another evaluation
set are refused; a training that is there already is replaced.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.errors import DataError
from data.files import is_file_name, read_json
from launcher.comparison.model_results import EvaluationSet, Training
from launcher.errors import ConfigError
from launcher.run_folder import is_number, write_text

RECORDS_FORMAT = 1
# The place of an utterance, as a key of JSON.
PLACE = re.compile("[0-9]{1,9}")
# Of numbers in a record: floating-point operations are the largest, and the largest models take 1e26.
MAX_VALUE = 1e30
HEADER_NAME = "evaluated.json"


def is_records_folder(folder: Path) -> bool:
    return (folder / HEADER_NAME).is_file()


def write_records(folder: Path, evaluated: EvaluationSet, trainings: Sequence[Training]) -> list[Path]:
    """Add trainings to a folder of records, which need not exist; returns the paths written.

    ConfigError where those that are there were evaluated on something else.
    """
    models: list[str] = []
    if is_records_folder(folder):
        recorded, models = _read_header(folder)
        # Not threads and seconds: they change speeds alone.
        for field in ("split", "search", "sha256"):
            before = getattr(recorded, field)
            now = getattr(evaluated, field)
            if before != now:
                raise ConfigError(
                    f"The records in {folder} are of another evaluation: its {field} is {before}, that of the run is "
                    f"{now}. Models can be compared on the same utterances alone; write these records to another "
                    "folder."
                )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is no folder of records: it holds files and no {HEADER_NAME}. Name a new or empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)

    # Each new model after the one that it follows in its own recipe; what comes first there, before the rest of them.
    place = len(models)
    for training in trainings:
        if training.model in models:
            place = min(place, models.index(training.model))
    for training in trainings:
        if training.model not in models:
            models.insert(place, training.model)
        place = models.index(training.model) + 1

    header = {"format": RECORDS_FORMAT, **asdict(evaluated), "models": models}
    written = [folder / HEADER_NAME]
    _write(folder / HEADER_NAME, header)
    for training in trainings:
        path = folder / f"{training.stage}.json"
        record = {"format": RECORDS_FORMAT, **asdict(training)}
        for key in ("character_errors", "word_errors"):
            # The utterances with errors by their place: of a good model these are few.
            record[key] = {str(place): count for place, count in enumerate(record[key]) if count}
        _write(path, record)
        written.append(path)
    return written


def read_records(folder: Path) -> tuple[EvaluationSet, list[Training]]:
    """Read a folder of records, in the order in which its models are to be read; DataError where one is torn."""
    evaluated, models = _read_header(folder)
    trainings = []
    for path in sorted(folder.glob("*.json")):
        if path.name == HEADER_NAME:
            continue
        record = _read(path)
        missing = [field.name for field in fields(Training) if field.name not in record]
        if missing:
            raise _torn(path, f"lacks {', '.join(missing)}")
        try:
            for key in ("character_errors", "word_errors"):
                errors = [0] * evaluated.utterances
                for place, count in record[key].items():
                    if not PLACE.fullmatch(place) or type(count) is not int or count < 0:
                        raise ValueError(f"{key} has {str(count)[:40]} at {place[:40]!r}")
                    errors[int(place)] = count
                record[key] = tuple(errors)
            record["compare_to"] = tuple(record["compare_to"])
            # Once by their types: a dataclass takes anything.
            TypeAdapter(Training).validate_python(record)
            _check_record(record)
            trainings.append(Training(**record))
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            # pydantic tells over several lines.
            reason = " ".join(str(error).split())
            raise _torn(path, f"holds something else than a training ({reason})") from None

    places = {model: place for place, model in enumerate(models)}

    def position(training: Training) -> tuple[int, str, int]:
        # A record that somebody copied into the folder is not in its header: it comes last.
        place = places.get(training.model, len(models))
        return place, training.model, training.seed

    return evaluated, sorted(trainings, key=position)


def _check_record(record: dict[str, Any]) -> None:
    """ValueError for names that no stage has, and for numbers with which nothing can be computed."""
    names = [record["stage"], record["model"], *record["compare_to"]]
    if record["teacher"] is not None:
        names.append(record["teacher"])
    for name in names:
        if not is_file_name(name):
            raise ValueError(f"{name[:80]!r} is no name of a stage")
    for key, value in record.items():
        if isinstance(value, int | float) and not (is_number(value) and abs(value) <= MAX_VALUE):
            raise ValueError(f"its {key} is {str(value)[:40]}")
    for key in ("parameters", "encoder_parameters"):
        if record[key] < 1:
            raise ValueError(f"its {key} is {record[key]}")


def _write(path: Path, record: dict[str, Any]) -> None:
    # A line per key: records are kept under version control, and a difference should show what changed.
    lines = []
    for key, value in record.items():
        lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    content = ",\n".join(lines)
    write_text(path, f"{{\n{content}\n}}\n")


def _read_header(folder: Path) -> tuple[EvaluationSet, list[str]]:
    path = folder / HEADER_NAME
    record = _read(path)
    models = record.pop("models", [])
    try:
        record["characters"] = tuple(record["characters"])
        record["words"] = tuple(record["words"])
        TypeAdapter(EvaluationSet).validate_python(record)
        TypeAdapter(list[str]).validate_python(models)
        lengths = (*record["characters"], *record["words"])
        if (
            not is_number(record["seconds"])
            or min(lengths) < 0
            or 0 in (sum(record["characters"]), sum(record["words"]))
        ):
            raise ValueError("its lengths are none")
        return EvaluationSet(**record), models
    except (KeyError, TypeError, ValueError):
        raise _torn(path, "does not have the keys of a folder's records") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise _torn(path, f"cannot be read as JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise _torn(path, "is not a record of a training")
    if record["format"] > RECORDS_FORMAT:
        raise ConfigError(
            f"{path} has format {record['format']}; this version reads formats up to {RECORDS_FORMAT}. Read it with "
            "the version of Chorus that wrote it."
        )
    del record["format"]
    return record


def _torn(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} {problem}. Put it back from version control, or write it again from its run with `chorus compare RUN "
        "--records DIR`."
    )
