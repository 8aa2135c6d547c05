"""What a user names to be transcribed, as recordings one by one, and each of them as a file on this machine.

Files, folders (with all that is in them), patterns, URLs of the protocols that shards may be read from, patterns of
such URLs, and `-` for standard input. What comes from elsewhere lies in a temporary file while it is read, so that all
bounds of files hold for it.
"""

import glob
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from data.errors import DataError
from data.redaction import has_credentials, redact
from data.remote.listing import list_matching
from data.remote.stores import PROTOCOLS, URL, open_store
from launcher.errors import ConfigError

STANDARD_INPUT = "-"
# What is taken from a folder, by its ending: what libsndfile reads, then what ffmpeg does.
AUDIO_SUFFIXES = frozenset(
    (
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".w64", ".rf64", ".au"),
        *(".snd", ".sph", ".wve", ".voc", ".nist", ".g722", ".mp2", ".avr", ".htk", ".ircam", ".paf", ".sd2", ".xi"),
        *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".mka", ".webm", ".weba", ".avi", ".wma"),
        *(".wmv", ".asf", ".flv", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".aac", ".ac3", ".eac3", ".dts", ".amr"),
        *(".awb", ".ape", ".wv", ".tta", ".mpc", ".tak", ".mxf", ".gsm", ".dsf", ".ra", ".rm", ".qcp"),
    )
)
# Of a name that is passed on to a temporary file, for some formats are known by their ending alone.
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
# A WAV of four hours, the longest that is transcribed, with two channels of 24 bits at 48 kHz.
MAX_BYTES = 4 * 2**30
# A transfer that is slower than a recording is spoken is given up.
MAX_TRANSFER_S = 14_400.0
PIECE_BYTES = 2**20


@dataclass(frozen=True)
class RecordingSource:
    """A recording as the user named it, or as it was found there. `output` is a relative path without an ending, for
    what is written about it."""

    name: str
    output: PurePosixPath

    @property
    def is_url(self) -> bool:
        return "://" in self.name


def find_recordings(arguments: Sequence[str]) -> list[RecordingSource]:
    """The recordings that the arguments name, in their order, those of a folder and of a pattern by name.

    What does not exist stays: it is named when its turn comes. ConfigError for standard input that is named twice and
    for URLs that may not be opened.
    """
    if arguments.count(STANDARD_INPUT) > 1:
        raise ConfigError("Standard input (`-`) is named more than once, and it holds one recording. Name it once.")
    sources: list[RecordingSource] = []
    for argument in arguments:
        if argument == STANDARD_INPUT:
            sources.append(RecordingSource(argument, PurePosixPath("stdin")))
        elif "://" in argument:
            sources += _find_urls(argument)
        else:
            sources += _find_files(Path(argument).expanduser(), argument)
    return sources


def _find_files(path: Path, argument: str) -> Iterator[RecordingSource]:
    try:
        is_folder = path.is_dir()
        exists = os.path.lexists(path)
    except (OSError, ValueError):
        # Such as a name of 300 letters; whoever opens it says so.
        is_folder = False
        exists = True
    if is_folder:
        yield from _find_in_folder(path)
        return
    if not exists and glob.has_magic(argument):
        matches = sorted(glob.glob(str(path), recursive=True))
        if "**" in argument:
            # It goes around in circles of links; a file's shortest name is the one without them.
            shortest_names: dict[str, str] = {}
            for match in sorted(matches, key=len):
                shortest_names.setdefault(os.path.realpath(match), match)
            matches = sorted(shortest_names.values())
        for match in matches:
            if not os.path.isdir(match):
                yield _file_source(Path(match), Path(match).name)
        if matches:
            return
    yield _file_source(Path(argument), path.name)


def _find_in_folder(folder: Path) -> Iterator[RecordingSource]:
    names = []
    # Links to folders are not followed: they may lead around in a circle, or out of the folder.
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                names.append(Path(root, name).relative_to(folder))
    if not names:
        # Its turn comes as that of a recording, and is refused as a folder without any.
        yield RecordingSource(str(folder), PurePosixPath(folder.name or "folder"))
    for name in sorted(names):
        yield _file_source(folder / name, name.as_posix())


def _find_urls(argument: str) -> Iterator[RecordingSource]:
    match = URL.match(argument)
    if match is None or match[1] not in PROTOCOLS or "::" in argument:
        raise ConfigError(
            f"{redact(argument)} is not opened: its protocol may open other files than it names. Give one URL, without "
            f"`::`, of {', '.join(PROTOCOLS)}."
        )
    if has_credentials(argument):
        raise ConfigError(
            f"{redact(argument)} holds a password, a token or a signature, which other users see on a command line. "
            "Give the URL without it: fsspec takes credentials from the environment and from ~/.config/fsspec."
        )
    # A question mark begins the query of a URL, and brackets stand for an address: a pattern has a star.
    if "*" not in argument:
        yield _url_source(argument)
        return
    try:
        matches = list_matching(argument)
    except DataError as error:
        raise ConfigError(f"{argument} cannot be looked through: {error}. Name its files instead.") from None
    for url in matches:
        yield _url_source(url)
    if not matches:
        yield _url_source(argument)


def _file_source(path: Path, shown: str) -> RecordingSource:
    output = PurePosixPath(shown)
    return RecordingSource(str(path), output.with_name(output.name or "recording"))


def _url_source(url: str) -> RecordingSource:
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    # What is not a name in one folder, and so could lead elsewhere, becomes one.
    return RecordingSource(url, PurePosixPath(re.sub(r"[/\\\0]", "_", name).strip(".") or "recording"))


@contextmanager
def local_file(source: RecordingSource) -> Iterator[Path]:
    """The recording as a file on this machine. DataError when it cannot be had."""
    if source.name != STANDARD_INPUT and not source.is_url:
        yield Path(source.name)
        return
    suffix = PurePosixPath(source.output).suffix
    with tempfile.TemporaryDirectory(prefix="chorus-recording-") as folder:
        path = Path(folder) / f"recording{suffix if SUFFIX.fullmatch(suffix) else ''}"
        if source.is_url:
            _fetch(source.name, path)
        else:
            _write_bounded(_read_pieces(), path, "Standard input")
        yield path


def _fetch(url: str, path: Path) -> None:
    try:
        _write_bounded(open_store(url).stream(url, 0), path, url)
    except OSError as error:
        raise DataError(
            f"{url} cannot be read: {redact(str(error))}. Look whether the URL is right and its server up, then give "
            "the same command again."
        ) from None


def _read_pieces() -> Iterator[bytes]:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise DataError("Standard input is closed. Give the recording as a file, or send it through a pipe.")
    while True:
        piece = stream.read(PIECE_BYTES)
        if not piece:
            return
        yield piece


def _write_bounded(pieces: Iterable[bytes], path: Path, name: str) -> None:
    num_bytes = 0
    start_s = time.monotonic()
    with path.open("wb") as file:
        for piece in pieces:
            num_bytes += len(piece)
            if num_bytes > MAX_BYTES:
                raise DataError(f"{name} has more than the {MAX_BYTES // 2**30} GiB that a recording may have.")
            if time.monotonic() - start_s > MAX_TRANSFER_S:
                raise DataError(f"{name} did not end within the {MAX_TRANSFER_S:g} s that a transfer may take.")
            file.write(piece)
    if num_bytes == 0:
        raise DataError(f"{name} is empty: it holds no recording.")
