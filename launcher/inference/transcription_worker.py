"""A process of `chorus transcribe --jobs N`."""

from pathlib import Path, PurePosixPath
from typing import Any

from launcher.devices import recognition_device
from launcher.inference.recording_sources import RecordingSource
from launcher.inference.worker_process import Handle, Report, serve
from launcher.recipe.search import read_search


def load(settings: dict[str, Any]) -> Handle:
    from launcher.inference.transcriber import Transcriber

    search = read_search(settings["search"], "The search")
    device = recognition_device(settings["device"])
    transcriber = Transcriber.load(Path(settings["model"]), search, device, settings["cut"], settings["dtype"])

    def transcribe(task: dict[str, Any], report: Report) -> dict[str, Any]:
        source = RecordingSource(task["name"], PurePosixPath(task["output"]))
        return transcriber.transcribe_source(source, on_progress=report)

    return transcribe


if __name__ == "__main__":
    serve(load)
