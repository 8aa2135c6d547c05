"""`chorus transcribe`: recordings as text, by a finished model."""

import argparse
import json
import sys
from pathlib import Path

from data.errors import DataError
from launcher.commands.search_options import search_values
from launcher.devices import recognition_device
from launcher.errors import CheckpointError, exit_code
from launcher.plain_text import raw_stream
from launcher.recipe.search import check_search_files, read_search
from launcher.recipe.yaml_io import apply_override


def transcribe(options: argparse.Namespace) -> int:
    model = _model_folder(Path(options.model).expanduser())
    values = search_values(options) or {}
    for override in options.set:
        apply_override(values, override)
    search = read_search({"kind": "greedy", **values}, "The search of these options")
    check_search_files(search, "search")

    # Imports torch; what is wrong with the options is said before that.
    from launcher.inference.evaluation import Transcriber

    transcriber = Transcriber(model, search, recognition_device(options.device))
    on_text = None
    if options.stream:
        on_text = _show_growing
    rows = []
    num_failed = 0
    for audio in options.audio:
        # One bad file loses no result: the others are tried, and what is known is printed at once.
        try:
            row = transcriber.transcribe(Path(audio), on_text)
        except DataError as error:
            num_failed += 1
            print(f"chorus: {error}", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        if not options.json:
            line = row["text"]
            # Several are told apart by their paths; one is the text alone, for a pipe.
            if len(options.audio) > 1:
                line = f"{row['audio']}\t{line}"
            print(line, flush=True)
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    if num_failed == 0:
        return 0
    if len(options.audio) > 1:
        print(f"chorus: {num_failed} of {len(options.audio)} recordings could not be recognised.", file=sys.stderr)
    # What could be recognised has been printed; the code says that it is not all.
    return exit_code(DataError())


def _show_growing(read_s: float, text: str) -> None:
    """The hypothesis so far on standard error; on a terminal each one takes the place of the one before."""
    line = f"{read_s:7.2f} s  {text}"
    if sys.stderr.isatty():
        # Back to the start of the line, and clear it.
        raw_stream(sys.stderr).write("\r\x1b[K")
        print(line, end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _model_folder(path: Path) -> Path:
    """Return the folder of the finished model at RUN/STAGE or at the path itself (else CheckpointError)."""
    for folder in (path / "model", path):
        if any(folder.glob("*.safetensors")):
            return folder
    raise CheckpointError(
        f"{path} holds no finished model: there is no *.safetensors in it nor in {path / 'model'}. "
        f"Name a training stage that is done, such as runs/mini/student; `chorus status` shows which are."
    )
