"""Where there is speech in a recording: Silero's voice activity detector, whose model lies in its package.

It needs `pip install 'chorus-asr[vad]'`. It knows no language, and costs about as much as a small encoder.

Shapes: S samples, T frames of FRAME_S.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch

from launcher.errors import ConfigError

RATE_HZ = 16000
FRAME_SAMPLES = 512
FRAME_S = FRAME_SAMPLES / RATE_HZ
# The detector listens to so much of what came before, so that its answers do not depend on how samples are handed over.
WARM_UP_FRAMES = 64


@lru_cache(maxsize=1)
def load_detector() -> Any:
    """The detector's model. ConfigError where it is not installed."""
    num_threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad

        # All frames of a piece in one call, by ONNX Runtime: the other forms of the model take a call for each frame.
        return load_silero_vad(sequence=True)
    except (ImportError, TypeError) as error:
        raise ConfigError(
            f"Long recordings are cut at silences by a voice activity detector, which is not installed here ({error}). "
            "Install it with pip install 'chorus-asr[vad]', or recognise them in one piece with --cut never, which "
            "takes memory that grows with their length."
        ) from None
    finally:
        # silero_vad 6.2 sets torch to one thread when it is imported.
        torch.set_num_threads(num_threads)


class SpeechDetector:
    """The probability of speech in every 32 ms of a recording that is handed over in pieces of any length."""

    def __init__(self, sample_rate_hz: int):
        self._model = load_detector()
        self._resampler = None
        if sample_rate_hz != RATE_HZ:
            self._resampler = soxr.ResampleStream(sample_rate_hz, RATE_HZ, 1, dtype="float32")
        self._waiting_S = np.zeros(0, np.float32)
        self._before_S = np.zeros(0, np.float32)

    def push(self, samples_S: npt.NDArray[np.float32], is_last: bool = False) -> npt.NDArray[np.float32]:
        """The next samples; the probabilities [T] of the frames that are whole by now, or, at the end, begun."""
        if self._resampler is not None:
            samples_S = self._resampler.resample_chunk(samples_S, last=is_last)
        samples_S = np.concatenate((self._waiting_S, samples_S))
        num_whole = len(samples_S) // FRAME_SAMPLES * FRAME_SAMPLES
        if is_last:
            num_whole = len(samples_S)
        self._waiting_S = samples_S[num_whole:]
        whole_S = samples_S[:num_whole]
        if num_whole == 0:
            return np.zeros(0, np.float32)

        heard_S = np.concatenate((self._before_S, whole_S))
        num_before = len(self._before_S) // FRAME_SAMPLES
        probabilities_T = self._model.audio_forward(heard_S, RATE_HZ)[num_before:]
        num_kept = min(WARM_UP_FRAMES, len(heard_S) // FRAME_SAMPLES) * FRAME_SAMPLES
        self._before_S = heard_S[len(heard_S) - num_kept :]
        return probabilities_T
