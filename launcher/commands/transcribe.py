"""`chorus transcribe`: recordings as text, by a finished model."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.files import replacing
from data.redaction import redact
from launcher.commands.search_options import read_search_options
from launcher.commands.transcription_progress import TranscriptionProgress
from launcher.devices import recognition_device
from launcher.errors import ConfigError, exit_code
from launcher.inference.adapted_model import with_adapter
from launcher.inference.model_lookup import find_model
from launcher.inference.recording_sources import STANDARD_INPUT, RecordingSource, find_recordings
from launcher.plain_text import raw_stream
from launcher.recipe.search import SearchConfig

if TYPE_CHECKING:
    from launcher.inference.transcription_pool import Outcome


def transcribe(options: argparse.Namespace) -> int:
    model = find_model(options.model)
    search = read_search_options(options)
    formats = options.format or ["text"]
    if options.json:
        formats = ["json", *(options.format or [])]
    sources = find_recordings(options.audio)
    outputs = _Outputs.plan(formats, options.out, sources)
    _check_jobs(options, sources)

    num_failed = 0
    with (
        with_adapter(model, options.adapter) as model,
        TranscriptionProgress([source.name for source in sources], quiet=options.stream) as progress,
    ):
        for source, outcome in zip(sources, _outcomes(options, model, search, sources, progress), strict=True):
            progress.clear()
            # One bad file loses no result: the others are tried, and what is known is written at once.
            if isinstance(outcome, DataError):
                num_failed += 1
                print(f"chorus: {redact(str(outcome))}", file=sys.stderr, flush=True)
            else:
                outputs.write(source, outcome)
    outputs.finish()
    if num_failed == 0:
        return 0
    if len(sources) > 1:
        print(f"chorus: {num_failed} of {len(sources)} recordings could not be recognised.", file=sys.stderr)
    # What could be recognised has been written; the code says that it is not all.
    return exit_code(DataError())


def _check_jobs(options: argparse.Namespace, sources: Sequence[RecordingSource]) -> None:
    if options.jobs < 1:
        raise ConfigError(f"--jobs is {options.jobs}. Give the number of processes that recognise, 1 or more.")
    if options.jobs > 1 and options.stream:
        raise ConfigError("--stream shows one recording as it is read, and --jobs reads several. Give one of them.")
    if options.jobs > 1 and any(source.name == STANDARD_INPUT for source in sources):
        raise ConfigError("Standard input is read by this process alone. Give it without --jobs.")


def _outcomes(
    options: argparse.Namespace,
    model: Path,
    search: SearchConfig,
    sources: Sequence[RecordingSource],
    progress: TranscriptionProgress,
) -> "Iterator[Outcome]":
    """The row of each recording, or why there is none, in their order."""
    # Every segment has another length, and oneDNN would keep what it compiled for the last 1024 shapes: after an hour
    # of speech, half a gigabyte. It reads this when it is first used.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # Imports torch; what is wrong with the options is said before that.
    device = recognition_device(options.device)
    jobs = min(options.jobs, len(sources))
    if jobs > 1:
        from launcher.inference.transcription_pool import TranscriptionPool, WorkerSettings

        settings = WorkerSettings(str(model), search.model_dump(mode="json"), str(device), options.cut, options.dtype)
        with TranscriptionPool(settings, jobs) as pool:
            yield from pool.transcribe(sources, progress.update)
        return

    from launcher.inference.transcriber import Transcriber

    transcriber = Transcriber.load(model, search, device, options.cut, options.dtype)
    on_text = None
    if options.stream:
        on_text = _show_growing
    for number, source in enumerate(sources):
        try:
            yield transcriber.transcribe_source(source, on_text, progress.of_recording(number))
        except DataError as error:
            yield error


@dataclass
class _Outputs:
    """Where transcripts go: to standard output in one format, or to files in a folder."""

    formats: Sequence[str]
    folder: Path | None
    names: dict[str, PurePosixPath]
    num_sources: int
    rows: list[dict[str, Any]]

    @classmethod
    def plan(cls, formats: Sequence[str], out: str | None, sources: Sequence[RecordingSource]) -> "_Outputs":
        """ConfigError where the formats cannot be told apart there, or two recordings would have one file."""
        from launcher.inference.transcript_formats import FORMATS

        formats = list(dict.fromkeys(formats))
        if out is None:
            name = formats[0]
            if len(formats) > 1:
                raise ConfigError(
                    f"Standard output takes one format, and {', '.join(formats)} are asked for. Give --out DIR, and "
                    "each recording gets a file of each format there."
                )
            if not FORMATS[name].joins and len(sources) > 1:
                raise ConfigError(
                    f"{name} holds one recording, and {len(sources)} are named. Give --out DIR, and each gets a "
                    "file there."
                )
            return cls(formats, None, {}, len(sources), [])
        names: dict[str, PurePosixPath] = {}
        taken: dict[PurePosixPath, str] = {}
        stems = [source.output.with_suffix("") for source in sources]
        for source, stem in zip(sources, stems, strict=True):
            # talk.wav becomes talk.srt; beside talk.mp3, talk.wav.srt.
            name = stem if stems.count(stem) == 1 else source.output
            if taken.get(name, source.name) != source.name:
                raise ConfigError(
                    f"{taken[name]} and {source.name} would both be written to {name} in {out}. Name the folder that "
                    "holds them, whose structure is kept, or give the command for each."
                )
            taken[name] = source.name
            names[source.name] = name
        return cls(formats, Path(out).expanduser(), names, len(sources), [])

    def write(self, source: RecordingSource, row: dict[str, Any]) -> None:
        from launcher.inference.transcript_formats import FORMATS

        if self.folder is not None:
            for name in self.formats:
                stem = self.folder / self.names[source.name]
                path = stem.with_name(stem.name + FORMATS[name].suffix)
                with replacing(path, durable=False) as temporary:
                    temporary.write_text(FORMATS[name].write(row), "utf-8", errors="backslashreplace")
                print(path, flush=True)
        elif self.formats[0] == "json":
            self.rows.append(row)
        elif self.formats[0] == "text" and self.num_sources > 1:
            # Several are told apart by their paths; one is the text alone, for a pipe.
            print(f"{row['audio']}\t{row['text']}", flush=True)
        else:
            print(FORMATS[self.formats[0]].write(row), end="", flush=True)

    def finish(self) -> None:
        if self.folder is None and self.formats[0] == "json":
            print(json.dumps(self.rows, ensure_ascii=False, indent=2))


def _show_growing(read_s: float, text: str) -> None:
    """The hypothesis so far on standard error; on a terminal each one takes the place of the one before."""
    line = f"{read_s:7.2f} s  {text}"
    if sys.stderr.isatty():
        # Back to the start of the line, and clear it.
        raw_stream(sys.stderr).write("\r\x1b[K")
        print(line, end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
