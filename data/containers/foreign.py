"""Files that libsndfile cannot read, by their first bytes: what they are, and how they become something that it can."""

from data.containers.stream import AudioError, ForeignAudioError

CONVERT = "convert it, for instance with ffmpeg -i IN OUT.flac"
# Bytes, the position where they stand, and the name of the format.
NOT_READ = (
    (b"ftyp", 4, "MPEG-4 (m4a, mp4, mov, 3gp)"),
    (b"moov", 4, "QuickTime (mov)"),
    (b"mdat", 4, "QuickTime (mov)"),
    (b"wide", 4, "QuickTime (mov)"),
    (b"\x1a\x45\xdf\xa3", 0, "Matroska or WebM"),
    (b"\x30\x26\xb2\x75", 0, "Windows Media (wma)"),
    (b"AVI ", 8, "AVI"),
    (b"FLV", 0, "Flash video"),
    (b"#!AMR", 0, "AMR"),
    (b"#!SILK", 0, "SILK"),
    (b"#!SILK", 1, "SILK"),
    (b".RMF", 0, "RealMedia"),
    (b".ra\xfd", 0, "RealAudio"),
    (b"wvpk", 0, "WavPack"),
    (b"MAC ", 0, "Monkey's Audio"),
    (b"TTA1", 0, "True Audio"),
    (b"MPCK", 0, "Musepack"),
    (b"MP+", 0, "Musepack"),
    (b"DSD ", 0, "DSD"),
    (b"\x0b\x77", 0, "AC-3"),
    (b".SoX", 0, "SoX"),
)
NO_RECORDINGS = (
    (b"version https://git-lfs", "is a pointer of Git LFS and not the recording itself: fetch it with git lfs pull"),
    (b"PK\x03\x04", "is a zip archive and not a recording: unpack it"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it"),
    (b"<!doctype", "is a web page and not a recording: fetch it again"),
    (b"<html", "is a web page and not a recording: fetch it again"),
)


def refuse_foreign(head: bytes) -> None:
    """Refuse a file that begins so where libsndfile does not read it: AudioError with what it is and what to do, as the
    end of a sentence about it. A ForeignAudioError is a recording."""
    for magic, position, name in NOT_READ:
        if head[position : position + len(magic)] == magic:
            raise ForeignAudioError(f"is {name}, which is not read here; {CONVERT}")
    # Twelve ones and layer 0, which MPEG audio of layers 1 to 3 does not have.
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        raise ForeignAudioError(f"is AAC, which is not read here; {CONVERT}")
    for magic, reason in NO_RECORDINGS:
        # Web pages write their first tag in any case.
        if head.lower().startswith(magic.lower()[: len(head)]):
            raise AudioError(reason)
