"""Log-mel features, batched, on the device of the waveforms.

A frame is a full window of real samples: an utterance of S samples has `(S - window) // hop + 1` frames,
none when it is shorter than a window. No frame reaches over the end of its utterance, so the features of an
utterance are the same alone and in a padded batch. Everything is computed in fp32, under autocast too, and
without a random number: the floor of the logarithm takes the place of dither.

Shapes: B batch, S samples, T frames, F mel bins.
"""

from __future__ import annotations

import logging
import warnings
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from data.errors import DataError
from data.seeds import derive_seed
from data.shards.joined_split import SplitReader
from data.shards.read_ahead import read_ahead
from data.shards.reader import UtteranceError

logger = logging.getLogger(__name__)

Count = TypeVar("Count", int, np.ndarray, Tensor)

# A bin without signal (speech recorded at a lower rate has such) must not have its rounding noise blown up.
MIN_STANDARD_DEVIATION = 0.2
# Kaldi's default.
PREEMPHASIS = 0.97


class FeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """Log-mel filterbank."""

    sample_rate_hz: int = Field(
        default=16000,
        ge=1000,
        le=96_000,
        description="rate of the shards and of the features, in Hz",
    )
    mel_bins: int = Field(default=80, ge=1, le=1024, description="number of mel filters")
    kind: Literal["log_mel", "kaldi"] = Field(
        default="log_mel",
        description="log_mel: Hann window, filters that are triangles over frequency; kaldi: the numbers of Kaldi's "
        "fbank without dither (Povey window, preemphasis, offset removed, triangles over the mel scale)",
    )
    window_ms: float = Field(default=25.0, gt=0, le=1000, description="length of the window, in milliseconds")
    hop_ms: float = Field(default=10.0, gt=0, le=1000, description="distance between frames, in milliseconds")
    low_hz: float = Field(default=20.0, ge=0, le=48_000, description="lower edge of the lowest filter, in Hz")
    high_hz: float | None = Field(
        default=None,
        gt=0,
        le=48_000,
        description="upper edge of the highest filter, in Hz; half the rate if unset",
    )
    floor: float = Field(
        default=1e-6,
        ge=1e-30,
        le=1,
        description="power added before the logarithm; of kaldi the least power, Kaldi's own being 1.1920929e-07 "
        "(full scale is 1)",
    )

    @model_validator(mode="after")
    def _check_band(self) -> FeaturesConfig:
        if self.window_samples < 2 or self.hop_samples < 1:
            raise ValueError(
                f"window_ms {self.window_ms} is {self.window_samples} samples and hop_ms {self.hop_ms} is "
                f"{self.hop_samples} at {self.sample_rate_hz} Hz; a window needs 2, and frames must lie 1 apart."
            )
        high_hz = self.high_hz or self.sample_rate_hz / 2
        if not self.low_hz < high_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"the band from low_hz {self.low_hz} to high_hz {high_hz} does not lie below half of "
                f"sample_rate_hz {self.sample_rate_hz}. Lower high_hz or leave it out."
            )
        empty = int((self.mel_filters().sum(0) == 0).sum())
        if empty:
            raise ValueError(
                f"mel_bins is {self.mel_bins}, more than the spectrum of a window of {self.window_ms} ms "
                f"resolves: {empty} filters are empty. Lower mel_bins or lengthen window_ms."
            )
        return self

    @property
    def window_samples(self) -> int:
        return round(self.window_ms * self.sample_rate_hz / 1000)

    @property
    def hop_samples(self) -> int:
        return round(self.hop_ms * self.sample_rate_hz / 1000)

    @property
    def fft_size(self) -> int:
        """The window, padded to the next power of two."""
        return 2 ** (self.window_samples - 1).bit_length()

    def mel_filters(self) -> Tensor:
        """Triangular filters between equal steps of the HTK mel scale, float32 [fft_size // 2 + 1, F].

        Those of `log_mel` are triangles over frequency, those of `kaldi` over the mel scale.
        """
        high_hz = self.high_hz or self.sample_rate_hz / 2
        if self.kind == "log_mel":
            with warnings.catch_warnings():
                # torchaudio warns of empty filters; they are refused when the configuration is read.
                warnings.simplefilter("ignore", UserWarning)
                return melscale_fbanks(
                    n_freqs=self.fft_size // 2 + 1,
                    f_min=self.low_hz,
                    f_max=high_hz,
                    n_mels=self.mel_bins,
                    sample_rate=self.sample_rate_hz,
                )

        edges_hz = torch.tensor([self.low_hz, high_hz], dtype=torch.float64)
        low, high = _mel(edges_hz).tolist()
        step = (high - low) / (self.mel_bins + 1)
        left_F = low + step * torch.arange(self.mel_bins, dtype=torch.float64)
        bins = torch.arange(self.fft_size // 2 + 1, dtype=torch.float64)
        frequencies_hz = bins * self.sample_rate_hz / self.fft_size
        # In steps from a triangle's left corner: it rises to 1 at its centre, one step on, and falls to 0 at two.
        position_NF = (_mel(frequencies_hz)[:, None] - left_F) / step
        filters_NF = torch.minimum(position_NF, 2 - position_NF).clamp_min(0)
        # Kaldi counts half the rate, the spectrum's highest frequency, to no filter.
        filters_NF[-1] = 0
        return filters_NF.float()

    def window(self) -> Tensor:
        """float32 [window_samples]; Povey's is a symmetric Hann window to the power of 0.85."""
        if self.kind == "kaldi":
            hann = torch.hann_window(self.window_samples, periodic=False, dtype=torch.float64)
            return hann.pow(0.85).float()
        return torch.hann_window(self.window_samples)

    def num_frames(self, samples: Count) -> Count:
        """Frames of so many samples: an int, or integers in a numpy array or a tensor."""
        frames = (samples - self.window_samples) // self.hop_samples + 1
        # A maximum with 0 that ints, arrays and tensors all understand.
        return frames * (frames > 0)


def _mel(hertz: Tensor) -> Tensor:
    # The HTK scale, 2595 log10(1 + f / 700), with the natural logarithm as in Kaldi.
    return 1127 * torch.log1p(hertz / 700)


class LogMel(nn.Module):
    """Waveforms to normalised log-mel features.

    The mean and standard deviation of each bin are buffers, 0 and 1 until `set_statistics` is called; they
    are saved with the model.
    """

    mean_F: Tensor
    std_F: Tensor
    window: Tensor
    filters: Tensor

    def __init__(self, config: FeaturesConfig):
        super().__init__()
        self.config = config
        # Derived from the configuration, so not part of the saved weights; the statistics below are data.
        self.register_buffer("filters", config.mel_filters(), persistent=False)
        self.register_buffer("window", config.window(), persistent=False)
        self.register_buffer("mean_F", torch.zeros(config.mel_bins))
        self.register_buffer("std_F", torch.ones(config.mel_bins))

    def num_frames(self, samples: Count) -> Count:
        """Frames of so many samples; see `FeaturesConfig.num_frames`."""
        return self.config.num_frames(samples)

    def set_statistics(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Takes mean and standard deviation of bins, float32 [F], as `measure_statistics` returns them."""
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(std_F)

    @torch.no_grad()
    def forward(self, waveforms_BS: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, T, F] and lengths int64 [B] of waveforms [B, S] with `samples_B` valid samples.

        Frames beyond an utterance's length are zero.
        """
        # Under autocast the product with the filters would be in bf16, with 8 bits of precision.
        with torch.autocast(waveforms_BS.device.type, enabled=False):
            features_BTF = (self._log_mel(waveforms_BS.float()) - self.mean_F) / self.std_F
        lengths_B = self.num_frames(samples_B)
        frames_T = torch.arange(features_BTF.shape[1], device=features_BTF.device)
        valid_BT = frames_T < lengths_B[:, None]
        return features_BTF.masked_fill_(~valid_BT[:, :, None], 0.0), lengths_B

    def _log_mel(self, waveforms_BS: Tensor) -> Tensor:
        """The logarithm of each filter's power, before normalisation: fp32 [B, T, F]."""
        config = self.config
        batch, samples = waveforms_BS.shape
        if batch == 0 or samples < config.window_samples:
            return waveforms_BS.new_zeros(batch, 0, config.mel_bins)

        # Without padding: a frame is a full window of real samples.
        frames = waveforms_BS.unfold(-1, config.window_samples, config.hop_samples)
        if config.kind == "kaldi":
            frames = frames - frames.mean(-1, keepdim=True)
            # The first sample of a frame has none before it in the frame: it stands for that itself, as in Kaldi.
            previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
            frames = frames - PREEMPHASIS * previous

        # In place from here on: the spectrum is the largest tensor of the front-end.
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window, config.fft_size))
        power = spectrum.square_().sum(-1) @ self.filters
        if config.kind == "kaldi":
            power = power.clamp_(min=config.floor)
        else:
            power = power.add_(config.floor)
        return power.log_()


def measure_statistics(
    reader: SplitReader,
    config: FeaturesConfig,
    seed: int,
    utterances: int = 200,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each mel bin, float32 [F], over a seeded sample of a split.

    Utterances that cannot be read are logged and skipped. DataError when the split has another sample
    rate, or when no frame is left.
    """
    index = reader.index
    if index.sample_rate_hz != config.sample_rate_hz:
        raise DataError(
            f"The shards in {index.folder} have {index.sample_rate_hz} Hz and features.sample_rate_hz "
            f"is {config.sample_rate_hz}. Set it to the rate of the shards, or prepare the corpus at the "
            "other rate."
        )

    statistics_seed = derive_seed(seed, "feature statistics")
    generator = torch.Generator().manual_seed(statistics_seed)
    permutation = torch.randperm(len(index), generator=generator)
    # Sorted, so that shards are read from front to back.
    chosen = permutation[:utterances].sort().values
    log_mel = LogMel(config)
    num_frames = 0
    # Of features and of their squares. In fp64: the variance is a small difference of large sums.
    sums = torch.zeros(2, config.mel_bins, dtype=torch.float64)
    for example in read_ahead(reader, chosen.tolist()):
        if isinstance(example, UtteranceError):
            logger.warning("Skipped in the feature statistics: %s", example)
            continue
        waveform = torch.from_numpy(example.waveform)
        samples_B = torch.tensor([len(waveform)])
        features_BTF, _ = log_mel(waveform[None], samples_B)
        features_TF = features_BTF[0].double()
        num_frames += len(features_TF)
        sums[0] += features_TF.sum(0)
        sums[1] += features_TF.square().sum(0)

    if num_frames == 0:
        raise DataError(
            f"The features cannot be normalised: of {len(chosen)} utterances looked at in {index.folder} "
            f"none is readable and as long as a window of {config.window_ms} ms. Look at the corpus' "
            "recordings."
        )
    mean_F, mean_square_F = sums / num_frames
    # Rounding can bring the variance of a constant bin below zero.
    variance_F = (mean_square_F - mean_F.square()).clamp_min(0)
    std_F = variance_F.sqrt().clamp_min(MIN_STANDARD_DEVIATION)
    return mean_F.float(), std_F.float()
