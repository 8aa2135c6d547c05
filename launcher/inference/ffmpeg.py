"""Recordings in formats that libsndfile does not read, decoded by ffmpeg where it is installed.

The file may come from anybody: ffmpeg is started without a shell, with a fixed list of arguments, for one local file
whose format is a container of audio and not a playlist, without protocols that reach other hosts, and with limits on
its time, its memory and what it writes. It writes mono samples of 16 bits at the rate that is asked for.
"""

import logging
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile

from data.errors import DataError
from data.recordings import MAX_RECORDING_S

# Containers and bare codecs of recordings, as ffmpeg calls them. Playlists (hls, dash, concat, sdp and others) name
# other files, which would be opened with the rights of whoever transcribes.
FORMATS = (
    *("mov", "matroska", "asf", "avi", "flv", "mpegts", "mpeg", "mxf", "nut", "rm", "dsf", "caf"),
    *(
        "aac",
        "ac3",
        "eac3",
        "dts",
        "dtshd",
        "truehd",
        "amr",
        "amrnb",
        "amrwb",
        "mp3",
        "ogg",
        "flac",
        "wav",
        "w64",
        "aiff",
    ),
    *(
        "au",
        "ape",
        "tta",
        "wv",
        "mpc",
        "mpc8",
        "tak",
        "shn",
        "sox",
        "gsm",
        "g722",
        "g729",
        "ilbc",
        "voc",
        "qcp",
        "3dostr",
    ),
)
# Decoding takes a hundredth of a recording's length, or less.
TIMEOUT_S = 1800.0
MAX_MEMORY_BYTES = 4 * 2**30
MESSAGE_CHARACTERS = 300
MAX_MESSAGES_BYTES = 1 << 16
# What the container says of its length, in ffmpeg's description of it.
DURATION = re.compile(r"^\[info\] +Duration: (\d+):(\d\d):(\d\d\.\d+)", re.MULTILINE)
ERROR = re.compile(r"^.*\[(?:error|fatal)\] (.*)$", re.MULTILINE)
# What ffmpeg says once more after the cause, with the name of the file that it was given.
CONSEQUENCE = re.compile(r"Error opening (input|output) files?\b")
# Streams of one container end at different times; a second is no loss of speech.
STATED_TOLERANCE_S = 1.0

logger = logging.getLogger(__name__)


def find_ffmpeg() -> str | None:
    """The program on PATH, else that of the package imageio-ffmpeg, else None."""
    program = shutil.which("ffmpeg")
    if program is not None:
        return program
    try:
        from imageio_ffmpeg import get_ffmpeg_exe  # pyright: ignore[reportMissingImports]

        return get_ffmpeg_exe()
    # It raises RuntimeError where the package was installed without the program.
    except (ImportError, RuntimeError):
        return None


@contextmanager
def decoded_file(path: Path, sample_rate_hz: int, timeout_s: float | None = None) -> Iterator[Path]:
    """A WAV file with the recording in `path`, which is removed afterwards.

    DataError where there is no ffmpeg, and when it cannot decode the file, takes too long, or decodes a part of it.
    """
    program = find_ffmpeg()
    if program is None:
        raise DataError("ffmpeg, which reads such files, is not installed")
    with tempfile.TemporaryDirectory(prefix="chorus-ffmpeg-") as folder:
        decoded = Path(folder) / "decoded.wav"
        command = [
            *(program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", "-xerror"),
            # After `file:` a name is a name, whatever it begins with and whatever colons it holds.
            *("-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(FORMATS)),
            *("-i", f"file:{path.absolute()}"),
            # The first stream of audio; pictures, subtitles and whatever tags say are not decoded.
            *("-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1"),
            # A second more than a recording may last: whether it is too long is seen by what comes out.
            *("-t", f"{MAX_RECORDING_S + 1:g}", "-ac", "1", "-ar", str(sample_rate_hz), "-c:a", "pcm_s16le"),
            *("-f", "wav", f"file:{decoded}"),
        ]
        max_bytes = round((MAX_RECORDING_S + 2) * sample_rate_hz * 2)
        code, said = _run_limited(command, Path(folder), max_bytes, timeout_s or TIMEOUT_S)
        errors = []
        for match in ERROR.finditer(said):
            if not CONSEQUENCE.match(match[1]):
                errors.append(match[1].replace(str(path.absolute()), path.name).rstrip("."))
        reason = "; ".join(errors)[:MESSAGE_CHARACTERS]
        if "Format not on whitelist" in reason:
            reason = "its format is none of recordings"
        try:
            seconds = soundfile.info(decoded).duration
        except soundfile.SoundFileError:
            raise DataError(f"ffmpeg cannot decode it ({reason or 'it wrote nothing'})") from None
        if code != 0:
            raise DataError(f"ffmpeg could decode {seconds:.1f} s of it, and then failed ({reason})")
        _check_length(said, seconds, path, reason)
        yield decoded


def _check_length(said: str, seconds: float, path: Path, reason: str) -> None:
    """DataError when ffmpeg met errors and decoded less than its container states; a warning for either alone."""
    stated_s = 0.0
    match = DURATION.search(said)
    if match is not None:
        stated_s = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    # What is too long is refused for its length.
    stated_s = min(stated_s, MAX_RECORDING_S)
    is_part = seconds < stated_s - STATED_TOLERANCE_S
    if is_part and reason:
        raise DataError(f"ffmpeg could decode {seconds:.1f} s of the {stated_s:.1f} s that it states ({reason})")
    if is_part:
        logger.warning("%s: ffmpeg decoded %.1f s of the %.1f s that it states.", path, seconds, stated_s)
    elif reason:
        logger.warning("%s: ffmpeg decoded it, and says: %s.", path, reason)


def _run_limited(command: list[str], folder: Path, max_bytes: int, timeout_s: float) -> tuple[int, str]:
    """Run ffmpeg; its exit code and what it said. DataError when it passes a limit."""
    messages = folder / "messages.txt"
    with messages.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
        )
    try:
        # From outside: what is run between fork and exec is not safe beside other threads.
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    except ProcessLookupError:
        # It has ended already.
        pass
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise DataError(f"ffmpeg had not decoded it after {timeout_s:g} s") from None
    finally:
        process.kill()
        process.wait()
    with messages.open("rb") as file:
        said = file.read(MAX_MESSAGES_BYTES).decode("utf-8", "replace")
    if code < 0:
        raise DataError(f"ffmpeg was ended by signal {-code}; it may use {MAX_MEMORY_BYTES // 2**30} GiB of memory")
    return code, said
