"""From the bytes of a request to a recording: a temporary file with a name of ours, within the server's limits."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data.audio import AudioError, open_recording
from data.containers import ForeignAudioError
from data.errors import DataError
from data.recordings import forget_recordings
from launcher.inference.ffmpeg import decoded_file
from launcher.inference.transcriber import Transcriber
from launcher.serving.batching import BatchedModel, Batcher, Work
from launcher.serving.gate import Slot
from launcher.serving.refusals import RefusedError
from launcher.serving.settings import ServerSettings

# What a recording is called in messages: the name that came with it is nobody's business here.
NAME = "The recording"


def recognise_upload(
    batcher: Batcher, work: Work, slot: Slot, upload: BinaryIO, settings: ServerSettings
) -> dict[str, Any]:
    """The row of an uploaded recording.

    RefusedError for what is none or lasts too long, AbandonedError when nobody waits for it.
    """
    model = BatchedModel(batcher, work)
    rate_hz = model.features.config.sample_rate_hz
    with tempfile.NamedTemporaryFile(prefix="chorus-serve-") as file:
        path = Path(file.name)
        try:
            shutil.copyfileobj(upload, file)
            file.flush()
            with _readable(path, rate_hz, slot, settings) as readable:
                work.check()
                seconds = open_recording(readable).seconds
                if seconds > settings.max_seconds:
                    raise RefusedError(
                        413,
                        f"{NAME} lasts {seconds:.0f} s, and this server takes {settings.max_seconds:g} s at most. Send "
                        "it in parts.",
                        "too_long",
                        "file",
                    )
                return Transcriber(model).transcribe(readable, on_progress=lambda *_: work.check(), name=NAME)
        except (AudioError, DataError) as error:
            reason = str(error).replace(f"{NAME} cannot be recognised: ", "").replace(str(path), "it").rstrip(".")
            raise RefusedError(400, f"{NAME} cannot be recognised: {reason}.", "invalid_audio", "file") from None
        finally:
            forget_recordings()


@contextmanager
def _readable(path: Path, rate_hz: int, slot: Slot, settings: ServerSettings) -> Iterator[Path]:
    """The recording as a file that libsndfile reads."""
    try:
        open_recording(path)
    except ForeignAudioError:
        if not settings.uses_ffmpeg:
            raise
    else:
        yield path
        return
    with decoded_file(path, rate_hz, slot.remaining_s()) as decoded:
        yield decoded
