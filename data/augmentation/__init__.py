"""What is done to training utterances only: to waveforms (speed, rooms, noise, codecs), and to features (masks, warps).

Every draw follows from the seed of the run, the step and the utterance, so that an utterance is augmented the same way
whichever process, thread or device does it.
"""

from data.augmentation.config import AugmentConfig
from data.augmentation.recordings import ShardSet
from data.augmentation.spec_augment import SpecAugment, apply_mask
from data.augmentation.speed import change_speed
from data.augmentation.time_warp import warp_time
from data.augmentation.waveform import WaveformAugmentation

__all__ = [
    "AugmentConfig",
    "ShardSet",
    "SpecAugment",
    "WaveformAugmentation",
    "apply_mask",
    "change_speed",
    "warp_time",
]
