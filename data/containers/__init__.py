"""The streams of audio in a file, each checked to be whole: what a header says about a length is not believed."""

from data.containers.stream import AudioError, ForeignAudioError, Stream, StreamFile
from data.containers.streams import read_streams

__all__ = ["AudioError", "ForeignAudioError", "Stream", "StreamFile", "read_streams"]
