"""Reverberation: utterances as they sound in rooms, recorded or simulated."""

import math
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, model_validator

from data.augmentation.convolution import Waveform, convolve
from data.augmentation.noise import power
from data.augmentation.ranges import Range, within
from data.augmentation.rooms import MARGIN_M


class ReverberationConfig(BaseModel, frozen=True, extra="forbid"):
    """Impulse responses that utterances are filtered with: recordings of them, or simulated rooms."""

    probability: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of the utterances that reverberate",
    )
    recordings: str | None = Field(
        default=None,
        description="impulse responses: shards (a split's folder or URL) at the rate of the features, or a folder of "
        "audio files; none: simulated rooms",
    )
    rooms: int = Field(
        default=200,
        ge=1,
        le=1000,
        description="how many rooms are simulated, each when first drawn",
    )
    rt60_s: Annotated[Range, within(0.05, 3.0)] = Field(
        default=(0.2, 0.8),
        description="range of simulated reverberation times, in seconds: sound is 60 dB lower then",
    )
    side_m: Annotated[Range, within(1.5, 30.0)] = Field(
        default=(3.0, 10.0),
        description="range of lengths and widths of simulated rooms, in metres",
    )
    height_m: Annotated[Range, within(1.5, 15.0)] = Field(
        default=(2.4, 4.0),
        description="range of heights of simulated rooms, in metres",
    )
    distance_m: Annotated[Range, within(MARGIN_M, 20.0)] = Field(
        default=(0.3, 3.0),
        description="range of distances from speaker to microphone in simulated rooms, in metres",
    )

    @model_validator(mode="after")
    def _check_rooms(self) -> "ReverberationConfig":
        # Whose simulation would have no effect.
        if self.recordings is not None:
            for key in ("rooms", "rt60_s", "side_m", "height_m", "distance_m"):
                if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} is that of simulated rooms, and recordings names responses that were recorded; leave "
                        "one of the two out"
                    )
        return self


def reverberate(waveform: Waveform, response: Waveform, delay: int) -> Waveform:
    """An utterance [S] filtered by an impulse response, as loud as before and as long: float32 [S].

    `delay` is the sample of the response at which the direct sound arrives. It is taken back, so that a frame of the
    result holds what was said in that frame.
    """
    reverberated = convolve(waveform, response, delay)
    reverberated_power = power(reverberated)
    # Silence in, or a response of silence: nothing could be brought back to its power.
    if reverberated_power == 0:
        return waveform
    return reverberated * np.float32(math.sqrt(power(waveform) / reverberated_power))


def direct_sound(response: Waveform) -> int:
    """The sample of a recorded impulse response at which the direct sound arrives: its largest."""
    return int(np.abs(response).argmax())
