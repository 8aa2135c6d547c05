"""G.722, the wide-band codec of telephony, as exchanges store it: 64 kbit/s at 16 kHz, without any header.

A file is told by its ending alone. Its decoder has a state that only decoding from the beginning gives, so a file is
decoded as a whole, and has a bound. Needs the package G722, an extra of Chorus.
"""

import io
from pathlib import Path

import numpy as np

from data.containers import AudioError
from data.files import open_regular

SUFFIX = ".g722"
RATE_HZ = 16000
BITS_PER_S = 64000
# One hour: 29 MB that become 115 MB of samples.
MAX_BYTES = 3600 * BITS_PER_S // 8


def is_g722(path: Path) -> bool:
    """Whether a file is taken for G.722, by its name."""
    return path.suffix.lower() == SUFFIX


def decode_g722(path: Path) -> io.BytesIO:
    """The samples of a file, 16 bit, mono, little-endian, at 16 kHz. AudioError when it is too long or cannot be read,
    or the package is not there."""
    try:
        # Imported here, as it is an extra that few need.
        from G722 import G722
    except ImportError as error:
        raise AudioError(
            f"{path} is G.722, which is read with the package G722; run pip install 'chorus-asr[g722]'"
        ) from error
    try:
        # As G.722 has no frames that could be found damaged, every file is sound.
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise AudioError(f"{path} has more than the {MAX_BYTES} bytes of G.722 that can be read at once; divide it")
    samples = np.asarray(G722(RATE_HZ, BITS_PER_S).decode(content))
    return io.BytesIO(samples.astype("<i2").tobytes())
