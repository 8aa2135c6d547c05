"""`chorus export`: a finished model of any checkpoint, or one in the layout of another program.

Refuses to write into a folder that holds something already. An export appears whole or not at all.
"""

import argparse
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.commands.export_source import ModelSource, default_folder, export_checkpoint, open_source
from launcher.errors import ConfigError
from launcher.export.model_card import read_facts, write_card
from launcher.export.whole_folder import check_is_free, whole_folder
from launcher.inference.adapted_model import with_adapter
from launcher.recipe import AverageConfig, validate
from launcher.recipe.yaml_io import parse_value
from launcher.run_files import read_state
from launcher.run_folder import RunFolder

# The formats whose models have an int8 form, and those whose weights may be stored in fp16.
INT8_FORMATS = ("onnx", "sherpa-onnx")
FP16_FORMATS = ("chorus", "huggingface")


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    out = None
    if options.out:
        out = Path(options.out).expanduser().absolute()
        check_is_free(out)
    _check_formats(options)
    average = None
    if options.average is not None:
        average = _read_average(options)

    if options.adapter is not None and (out is None or options.step is not None or average is not None):
        raise ConfigError(
            "--adapter is merged into the finished model that it was trained on: give --out DIR, and neither --step "
            "nor --average."
        )

    if options.adapter is not None or (options.format == "chorus" and _has_no_checkpoints(place, options)):
        with open_source(place) as source, with_adapter(source.folder, options.adapter) as adapted:
            source = replace(source, folder=adapted)
            folder = out or default_folder(source, "merged", None)
            row: dict[str, Any] = {"model": str(folder), "format": options.format, **_write(folder, source, options)}
    elif options.format == "chorus":
        folder, steps = export_checkpoint(place, options.step, out, average, options.dtype)
        row = {"model": str(folder), "step": steps[-1]}
        if average is not None:
            row["average"] = {"kind": average.kind, "steps": steps}
    else:
        with open_source(place, options.step) as source:
            folder = out or default_folder(source, options.format, options.step)
            row = {"model": str(folder), "format": options.format, **_write(folder, source, options)}
    if options.format in FP16_FORMATS:
        row["dtype"] = options.dtype
        row["weights_bytes"] = (folder / "model.safetensors").stat().st_size
    if options.json:
        print(json.dumps(row, ensure_ascii=False))
    else:
        if options.dtype != "fp32":
            print(f"weights in {options.dtype}: {row['weights_bytes'] / 1e6:.2f} MB")
        for line in row.pop("table", []):
            print(line)
        print(folder)
    return 0


def _check_formats(options: argparse.Namespace) -> None:
    """ConfigError for an option that the format does not know."""
    if options.int8 and options.format not in INT8_FORMATS:
        raise ConfigError(f"--int8 is for --format {' and '.join(INT8_FORMATS)}, and the format is {options.format}.")
    if options.dtype != "fp32" and options.format not in FP16_FORMATS:
        raise ConfigError(f"--dtype is for --format {' and '.join(FP16_FORMATS)}, and the format is {options.format}.")
    if options.evaluate and options.format != "onnx":
        raise ConfigError(f"--evaluate is for --format onnx, and the format is {options.format}.")
    if options.licence and options.format != "huggingface":
        raise ConfigError(f"--licence is for --format huggingface, and the format is {options.format}.")


def _has_no_checkpoints(place: Path, options: argparse.Namespace) -> bool:
    """Whether the place is a finished model that is written as it is: a folder or a name, or one with adapters, which
    is written merged."""
    if options.step is not None or options.average is not None:
        return False
    if read_state(RunFolder(place.parent)) is None:
        return True
    from model.export import read_description

    for folder in (place / "model", place):
        with suppress(OSError, ValueError):
            return read_description(folder).encoder.adapters is not None
    return False


def _read_average(options: argparse.Namespace) -> AverageConfig:
    """The average that the options ask for."""
    if options.format != "chorus":
        raise ConfigError(
            f"--average makes a model folder, and the format is {options.format}. Make it first, without --format, and "
            "export that folder then."
        )
    kind, colon, number = options.average.partition(":")
    values: dict[str, Any] = {"kind": kind}
    if colon:
        values["checkpoints"] = parse_value(number, "The number of checkpoints of --average")
    return validate(AverageConfig, values, "--average KIND:CHECKPOINTS")


def _write(folder: Path, source: ModelSource, options: argparse.Namespace) -> dict[str, Any]:
    """Write the folder in the format of the options; what is to be told about it."""
    # Imports torch and, for ONNX, what takes longer still.
    from launcher.export.model_files import open_model_files
    from launcher.export.stored_dtype import stored_as

    model = open_model_files(source.folder)
    with whole_folder(folder) as temporary:
        if options.format == "chorus":
            from launcher.inference.finished_model import write_finished_model

            recognizer = model.recognizer
            weights = stored_as(recognizer.state_dict(), options.dtype)
            write_finished_model(temporary, source.folder, recognizer.config, model.features, weights)
            return {}
        if options.format == "huggingface":
            from launcher.export.hub_folder import write_hub_folder

            card = write_card(model.recognizer, read_facts(source.name, source.run, source.stage, options.licence))
            write_hub_folder(temporary, model, card, options.dtype)
            return {}
        if options.format == "torch-export":
            from launcher.export.torch_program import write_program

            write_program(temporary, model)
            return {}
        if options.format == "sherpa-onnx":
            from launcher.export.sherpa import write_sherpa

            return {"kind": write_sherpa(temporary, model, options.int8)}

        from launcher.export.onnx_graphs import write_graphs

        row: dict[str, Any] = {"graphs": write_graphs(temporary, model, options.int8)}
        if options.evaluate:
            from launcher.export.onnx_evaluation import evaluate_graphs, show_results

            row["results"] = evaluate_graphs(temporary, model, Path(options.evaluate).expanduser())
            row["table"] = show_results(row["results"])
        return row
