"""Whether an Arrow stream is compressed, seen before anything of it is decompressed.

pyarrow decompresses a batch when it reads it, into as many bytes as the file claims, and does not tell before. Its
messages are tables of FlatBuffers (Message.fbs and Schema.fbs of Arrow's format): where a table lies, an int32 leads
back to its list of fields, of 16 bits each; 0 stands for a field that is not there.
"""

import struct
from typing import Any

# Of a Message: the kind of its header, and the header. Of a DictionaryBatch: its values, a RecordBatch. Of that: how
# its buffers are compressed.
HEADER = 2
DICTIONARY_VALUES = 1
COMPRESSION = 3


def has_compressed_batches(stream: Any, pyarrow: Any) -> bool:
    """Whether a batch of rows, or of the values of a dictionary, in a buffer of a stream is compressed.

    Only headers are read. ValueError, or what pyarrow raises, for what is no stream.
    """
    messages = pyarrow.ipc.MessageReader.open_stream(stream)
    try:
        while True:
            message = messages.read_next_message()
            content = bytes(message.metadata)
            (message_table,) = struct.unpack_from("<I", content)
            header = _table_at(content, message_table, HEADER)
            if message.type == "dictionary":
                header = _table_at(content, header, DICTIONARY_VALUES)
            if message.type in ("record batch", "dictionary") and _field_at(content, header, COMPRESSION):
                return True
    except StopIteration:
        return False
    except struct.error as error:
        raise ValueError(f"a message of it is cut short ({error})") from None


def _field_at(content: bytes, table: int, number: int) -> int:
    """Where a field of the table at a place lies; 0 for one that is not there."""
    (distance,) = struct.unpack_from("<i", content, table)
    fields = table - distance
    (num_bytes,) = struct.unpack_from("<H", content, fields)
    # Behind the lengths of the list and of the table.
    entry = 4 + 2 * number
    if entry + 2 > num_bytes:
        return 0
    (offset,) = struct.unpack_from("<H", content, fields + entry)
    if offset == 0:
        return 0
    return table + offset


def _table_at(content: bytes, table: int, number: int) -> int:
    """Where the table lies that a field leads to."""
    place = _field_at(content, table, number)
    (distance,) = struct.unpack_from("<I", content, place)
    return place + distance
