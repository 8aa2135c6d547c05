"""`chorus export`: a finished model of any checkpoint, or one in the layout of another program.

Refuses to write into a folder that holds something already. An export appears whole or not at all.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from launcher.commands.export_source import ModelSource, default_folder, export_checkpoint, open_source
from launcher.errors import ConfigError
from launcher.export.model_card import read_facts, write_card
from launcher.export.whole_folder import check_is_free, whole_folder
from launcher.recipe import AverageConfig, validate
from launcher.recipe.yaml_io import parse_value

# The formats whose models have an int8 form.
INT8_FORMATS = ("onnx", "sherpa-onnx")


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    out = None
    if options.out:
        out = Path(options.out).expanduser().absolute()
        check_is_free(out)
    if options.int8 and options.format not in INT8_FORMATS:
        raise ConfigError(f"--int8 is for --format {' and '.join(INT8_FORMATS)}, and the format is {options.format}.")
    if options.evaluate and options.format != "onnx":
        raise ConfigError(f"--evaluate is for --format onnx, and the format is {options.format}.")
    if options.licence and options.format != "huggingface":
        raise ConfigError(f"--licence is for --format huggingface, and the format is {options.format}.")

    average = None
    if options.average is not None:
        average = _read_average(options)

    if options.format == "chorus":
        folder, steps = export_checkpoint(place, options.step, out, average)
        row: dict[str, Any] = {"model": str(folder), "step": steps[-1]}
        if average is not None:
            row["average"] = {"kind": average.kind, "steps": steps}
    else:
        with open_source(place, options.step) as source:
            folder = out or default_folder(source, options.format, options.step)
            row = {"model": str(folder), "format": options.format, **_write(folder, source, options)}
    if options.json:
        print(json.dumps(row, ensure_ascii=False))
    else:
        for line in row.pop("table", []):
            print(line)
        print(folder)
    return 0


def _read_average(options: argparse.Namespace) -> AverageConfig:
    """The average that the options ask for."""
    if options.step is not None:
        raise ConfigError("--step is one checkpoint, and --average is of several. Give one of them.")
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

    model = open_model_files(source.folder)
    with whole_folder(folder) as temporary:
        if options.format == "huggingface":
            from launcher.export.hub_folder import write_hub_folder

            card = write_card(model.recognizer, read_facts(source.name, source.run, source.stage, options.licence))
            write_hub_folder(temporary, model, card)
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
