"""What a recipe may say of augmentation: speeds and masks, and one section for each kind that has a probability."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from data.augmentation.codecs import CodecConfig
from data.augmentation.loudness import ClippingConfig, VolumeConfig
from data.augmentation.noise import BabbleConfig, NoiseConfig
from data.augmentation.reverberation import ReverberationConfig
from data.augmentation.telephone import TelephoneConfig
from data.augmentation.time_warp import TimeWarpConfig

WAVEFORM_KINDS = ("reverberation", "babble", "noise", "volume", "clipping", "telephone", "codec")
RECORDING_KINDS = ("reverberation", "babble", "noise")


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """What is done to training utterances only."""

    speeds: tuple[float, ...] = Field(
        default=(0.9, 1.0, 1.1),
        min_length=1,
        description="speed factors, one drawn per utterance and epoch; (1.0,) is none",
    )
    frequency_masks: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="masks over mel bins per utterance",
    )
    frequency_width_bins: int = Field(
        default=20,
        ge=1,
        le=1024,
        description="largest width of a frequency mask, in mel bins",
    )
    time_masks: int = Field(
        default=4,
        ge=0,
        le=1000,
        description="masks over time per utterance",
    )
    time_width_s: float = Field(
        default=0.4,
        gt=0,
        le=3600,
        description="largest width of a time mask, in seconds",
    )
    time_ratio: float = Field(
        default=0.08,
        gt=0,
        le=1,
        description="largest width of a time mask as a share of the utterance",
    )
    # Each of these is off where it is not named. They are done to a recording in this order, as it comes to be: a voice
    # in a room, with others, in front of a microphone, on a line.
    reverberation: ReverberationConfig | None = Field(
        default=None,
        description="rooms, recorded or simulated",
    )
    babble: BabbleConfig | None = Field(
        default=None,
        description="other utterances in the background",
    )
    noise: NoiseConfig | None = Field(
        default=None,
        description="recordings of noise",
    )
    volume: VolumeConfig | None = Field(
        default=None,
        description="louder or softer",
    )
    clipping: ClippingConfig | None = Field(
        default=None,
        description="the loudest samples are cut off",
    )
    telephone: TelephoneConfig | None = Field(
        default=None,
        description="the band of a telephone line, at 8 kHz",
    )
    codec: CodecConfig | None = Field(
        default=None,
        description="mu-law, G.722, MP3 or Opus",
    )
    time_warp: TimeWarpConfig | None = Field(
        default=None,
        description="features are warped along time",
    )

    @field_validator("speeds")
    @classmethod
    def _check_speeds(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.5 <= speed <= 2.0 for speed in speeds):
            raise ValueError(f"speeds are {speeds}; each must lie between 0.5 and 2.0, where speech stays speech.")
        return speeds

    def waveform_kinds(self) -> list[str]:
        """The keys of what is done to recordings beside their speed, in the order in which it is done."""
        return [key for key in WAVEFORM_KINDS if self.probability_of(key) > 0]

    def probability_of(self, key: str) -> float:
        """The share of the utterances that a kind is done to; 0 where its section is not there."""
        section = getattr(self, key)
        if section is None:
            return 0.0
        return section.probability

    def recordings(self) -> dict[str, str]:
        """Sets of recordings that are read: the path or URL of each by its key, such as noise.recordings."""
        paths: dict[str, str] = {}
        for key in RECORDING_KINDS:
            # One that is never drawn need not be there.
            if self.probability_of(key) == 0:
                continue
            path = getattr(self, key).recordings
            if path is not None:
                paths[f"{key}.recordings"] = path
        return paths
