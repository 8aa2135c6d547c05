"""A process of `chorus evaluate MODEL DATA --jobs N`."""

from dataclasses import asdict
from typing import Any

from launcher.evaluation.recognition import Batch, Recogniser, Settings
from launcher.evaluation.sets import Place
from launcher.inference.worker_process import Handle, Report, serve


def load(settings: dict[str, Any]) -> Handle:
    places = tuple(Place(**place) for place in settings["places"])
    recogniser = Recogniser(Settings(**{**settings, "places": places}))

    def recognise(task: dict[str, Any], report: Report) -> dict[str, Any]:
        batches = [Batch(**batch) for batch in task["batches"]]
        if task["is_timed"]:
            return {"latencies": recogniser.latencies(batches)}
        return {"outcomes": [asdict(recogniser.recognise(batch)) for batch in batches]}

    return recognise


if __name__ == "__main__":
    serve(load)
