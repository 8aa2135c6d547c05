"""Recordings recognised by several processes on this machine; rows of transcripts in the order of recordings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.inference.recording_sources import RecordingSource
from launcher.inference.worker_pool import OnProgress, Outcome, WorkerPool

WORKER_MODULE = "launcher.inference.transcription_worker"


@dataclass(frozen=True)
class WorkerSettings:
    """What a process needs to recognise as another one does: plain values, which go through JSON."""

    model: str
    search: dict[str, Any]
    device: str
    cut: str
    dtype: str


class TranscriptionPool(WorkerPool):
    """`jobs` processes with a model each, as a context."""

    def __init__(self, settings: WorkerSettings, jobs: int):
        super().__init__(WORKER_MODULE, vars(settings), jobs)

    def transcribe(self, sources: Sequence[RecordingSource], on_progress: OnProgress) -> Iterator[Outcome]:
        """The row of each recording, or why there is none, in their order."""
        tasks = [{"name": source.name, "output": str(source.output)} for source in sources]
        return self.run(tasks, on_progress)
