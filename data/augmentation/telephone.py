"""The band of a telephone line: 8 kHz, and of that what lies between two frequencies."""

import functools

import numpy as np
from pydantic import BaseModel, Field, model_validator

from data.augmentation.convolution import Waveform, convolve
from data.augmentation.resampling import at_rate

TELEPHONE_HZ = 8000
# To each side of the band filter's centre: 16 ms, so that it falls within about 100 Hz.
FILTER_SAMPLES = 128


class TelephoneConfig(BaseModel, frozen=True, extra="forbid"):
    """Utterances that come through a telephone line."""

    probability: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of the utterances that are band-limited",
    )
    low_hz: float = Field(
        default=300.0,
        ge=0,
        le=2000,
        description="lower end of the band, in Hz; 0: none",
    )
    # G.712 lets pass 300 to 3400 Hz.
    high_hz: float = Field(
        default=3400.0,
        ge=1000,
        le=4000,
        description="upper end of the band, in Hz",
    )

    @model_validator(mode="after")
    def _check_band(self) -> "TelephoneConfig":
        if self.low_hz >= self.high_hz:
            raise ValueError(
                f"low_hz is {self.low_hz:g} and high_hz {self.high_hz:g}: no band lies between them; lower the first "
                "or raise the second"
            )
        return self


def limit_band(
    waveform: Waveform,
    sample_rate_hz: int,
    low_hz: float,
    high_hz: float,
) -> Waveform:
    """The waveform [S] as a telephone line passes it on, at the same rate: nothing above 4 kHz, and of what is below
    only what lies in the band. It is not delayed."""
    band = _band_filter(low_hz, high_hz)
    return at_rate(
        waveform,
        sample_rate_hz,
        TELEPHONE_HZ,
        lambda narrow: convolve(narrow, band, delay=FILTER_SAMPLES),
    )


@functools.lru_cache(maxsize=8)
def _band_filter(low_hz: float, high_hz: float) -> Waveform:
    """A symmetric windowed-sinc filter: the low-pass of the upper end less that of the lower end."""
    positions = np.arange(-FILTER_SAMPLES, FILTER_SAMPLES + 1)
    high = 2 * high_hz / TELEPHONE_HZ
    low = 2 * low_hz / TELEPHONE_HZ
    ideal = high * np.sinc(high * positions) - low * np.sinc(low * positions)
    return (ideal * np.hamming(len(positions))).astype(np.float32)
