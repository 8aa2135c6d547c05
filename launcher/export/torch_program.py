"""A recogniser as a program of `torch.export`: `torch.export.load(FILE).module()(features, lengths)`.

It gives CTC logits and their lengths for any batch and any number of feature frames from `factor + 1` on, and needs
torch alone.
"""

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from launcher.export.model_files import ModelFiles
from launcher.export.network import build_network

PROGRAM_FILE = "recognizer.pt2"


def write_program(folder: Path, model: ModelFiles) -> None:
    """Write `recognizer.pt2` into a folder."""
    network = build_network(model)
    program = trace(network, model.recognizer.mel_bins, model.recognizer.encoder.subsampling.factor)
    torch.export.save(program, folder / PROGRAM_FILE)


def trace(module: torch.nn.Module, mel_bins: int, factor: int) -> ExportedProgram:
    """The program of a module that takes features [B, T, F] and lengths [B], for any B and any T above `factor`."""
    # Of one encoder frame torch would make a program for one frame: the example has more, and so must every input.
    example_lengths = torch.tensor([8 * factor + 3, 5 * factor])
    example = torch.randn(2, 8 * factor + 3, mel_bins)
    batch = Dim("batch")
    time = Dim("time", min=factor + 1)
    shapes = ({0: batch, 1: time}, {0: batch})
    with torch.no_grad():
        return torch.export.export(module, (example, example_lengths), dynamic_shapes=shapes, strict=False)
