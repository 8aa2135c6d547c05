"""Formats that libsndfile does not read: ffmpeg is given one local file, few rights and little time."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.errors import DataError
from data.recordings import MAX_RECORDING_S
from launcher.inference import ffmpeg
from launcher.inference.ffmpeg import decoded_file, find_ffmpeg

# Stands in for the program: notes its arguments, then does what its variable says.
PROGRAM = """#!{python}
import json, os, sys, time
import numpy, soundfile
arguments = sys.argv[1:]
with open({notes!r}, "w") as file:
    json.dump([arguments, os.getcwd(), sys.stdin.read()], file)
what = {what!r}
output = arguments[-1].removeprefix("file:")
seconds = 5
if what == "part":
    seconds = 2
    print("[in#0/matroska @ 0x1] [error] File ended prematurely", file=sys.stderr)
if what == "warns":
    print("[mov @ 0x1] [error] Referenced QT chapter track not found", file=sys.stderr)
print("[info]   Duration: 00:00:05.00, start: 0.000000", file=sys.stderr)
if what == "hangs":
    time.sleep(60)
if what == "refuses":
    print("[in#0 @ 0x1] [error] moov atom not found", file=sys.stderr)
    print("[error] Error opening input file file:/tmp/chorus-1/a.m4a.", file=sys.stderr)
    print("[error] Error opening input files: Invalid data found when processing input", file=sys.stderr)
    sys.exit(1)
if what == "large":
    with open(output, "wb") as file:
        file.write(bytes(10_000_000))
rate = int(arguments[arguments.index("-ar") + 1])
soundfile.write(output, numpy.ones(seconds * rate) / 8, rate, format="WAV")
if what == "fails late":
    print("[fatal] corrupt input packet in stream 0", file=sys.stderr)
    sys.exit(69)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a stand-in on PATH; returns the file into which it notes what it was given."""

    def install(what: str = "decodes") -> Path:
        notes = tmp_path / "notes.json"
        path = tmp_path / "bin" / "ffmpeg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(python=sys.executable, notes=str(notes), what=what))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        return notes

    return install


NAMES = [
    "-i.m4a",
    "-protocol_whitelist.m4a",
    "http:b.m4a",
    "concat:a|b.m4a",
    "a b'c\"$(id);.m4a",
    "%03d.m4a",
    "запись.m4a",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_the_name_of_one_local_file(program, tmp_path, monkeypatch, name):
    notes = program()
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"\0\0\0\x20ftypM4A ")
    with decoded_file(Path(name), 16000) as decoded:
        samples, rate_hz = soundfile.read(decoded)
    assert (len(samples), rate_hz) == (5 * 16000, 16000)
    assert not decoded.exists()
    arguments, folder, said = json.loads(notes.read_text("utf-8"))
    assert arguments.count("-i") == 1
    assert arguments[arguments.index("-i") + 1] == f"file:{tmp_path / name}"
    # Set before the input that they are about.
    before = arguments[: arguments.index("-i")]
    assert before[before.index("-protocol_whitelist") + 1] == "file,pipe"
    allowed = before[before.index("-format_whitelist") + 1].split(",")
    assert not {"hls", "concat", "dash", "sdp", "lavfi", "image2", "rtsp", "ffmetadata"} & set(allowed)
    assert folder != str(tmp_path)
    assert said == ""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("refuses", r"ffmpeg cannot decode it \(moov atom not found\)$"),
        ("fails late", "could decode 5.0 s of it, and then failed .corrupt input packet"),
        ("part", "could decode 2.0 s of the 5.0 s that it states .File ended prematurely"),
    ],
)
def test_what_ffmpeg_cannot_decode_whole_is_refused(program, tmp_path, what, words):
    program(what)
    with pytest.raises(DataError, match=words), decoded_file(tmp_path / "a.m4a", 16000):
        pass


def test_ffmpeg_has_limits_on_its_time_and_its_output(program, tmp_path, monkeypatch):
    program("hangs")
    monkeypatch.setattr(ffmpeg, "TIMEOUT_S", 0.5)
    with pytest.raises(DataError, match=r"had not decoded it after 0\.5 s"), decoded_file(tmp_path / "a.m4a", 16000):
        pass
    monkeypatch.setattr(ffmpeg, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(ffmpeg, "MAX_RECORDING_S", 1.0)
    program("large")
    with pytest.raises(DataError), decoded_file(tmp_path / "a.m4a", 16000):
        pass


def test_what_ffmpeg_says_of_a_whole_recording_is_a_warning(program, tmp_path, caplog):
    program("warns")
    with decoded_file(tmp_path / "a.m4a", 8000) as decoded:
        assert soundfile.info(decoded).samplerate == 8000
    assert "Referenced QT chapter track not found" in caplog.text


def test_a_machine_without_ffmpeg_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert find_ffmpeg() is None
    with pytest.raises(DataError, match="is not installed"), decoded_file(tmp_path / "a.m4a", 16000):
        pass


@pytest.mark.skipif(find_ffmpeg() is None, reason="ffmpeg is not installed")
def test_a_real_ffmpeg_decodes_and_does_not_follow_a_playlist(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(48000) / 20), 16000)
    program = find_ffmpeg()
    assert program is not None
    for name in ("b.m4a", "c.webm", "d.mka"):
        subprocess.run([program, "-v", "error", "-i", tmp_path / "a.wav", tmp_path / name], check=True)
        with decoded_file(tmp_path / name, 16000) as decoded:
            assert soundfile.info(decoded).duration == pytest.approx(3.0, abs=0.15)
    (tmp_path / "e.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nb.m4a\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match="none of recordings"), decoded_file(tmp_path / "e.m3u8", 16000):
        pass


def test_a_recording_that_is_too_long_is_decoded_a_second_further_and_no_more(program, tmp_path):
    notes = program()
    with decoded_file(tmp_path / "a.m4a", 16000):
        pass
    arguments, _, _ = json.loads(notes.read_text("utf-8"))
    assert float(arguments[arguments.index("-t") + 1]) == MAX_RECORDING_S + 1
