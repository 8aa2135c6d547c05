"""The features of a Chorus recogniser for transformers: waveforms to normalised log-mel features.

A frame is a full window of real samples; nothing is padded before the windows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

# Kaldi's default.
PREEMPHASIS = 0.97


class ChorusFeatureExtractor(SequenceFeatureExtractor):
    """`config` describes the filters; `mean` and `std` of each of them were measured on the training data."""

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        config: dict[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        **kwargs: Any,
    ):
        # They follow from `config`.
        for name in ("feature_size", "sampling_rate", "padding_value"):
            kwargs.pop(name, None)
        super().__init__(
            feature_size=config["mel_bins"],
            sampling_rate=config["sample_rate_hz"],
            padding_value=0.0,
            **kwargs,
        )
        self.config = config
        self.mean = list(mean)
        self.std = list(std)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Features [B, T, F] and their mask [B, T] of a mono waveform, or of a list of them; full scale is 1.

        Raises ValueError for another `sampling_rate` than the model's.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(f"the model takes {self.sampling_rate} Hz and the waveform has {sampling_rate} Hz")
        waveforms = raw_speech
        is_single = np.ndim(raw_speech[0]) == 0
        if is_single:
            waveforms = [raw_speech]
        all_features = []
        for waveform in waveforms:
            samples_S = torch.as_tensor(np.asarray(waveform), dtype=torch.float32)
            all_features.append(self._features(samples_S))

        # One frame of padding at least, also where every waveform is shorter than a window.
        num_frames = max(1, *(len(features_TF) for features_TF in all_features))
        features_BTF = torch.zeros(len(all_features), num_frames, self.feature_size)
        mask_BT = torch.zeros(len(all_features), num_frames, dtype=torch.int64)
        for row, features_TF in enumerate(all_features):
            features_BTF[row, : len(features_TF)] = features_TF
            mask_BT[row, : len(features_TF)] = 1
        inputs = {"input_features": features_BTF, "attention_mask": mask_BT}
        if return_tensors != "pt":
            inputs = {name: tensor.numpy() for name, tensor in inputs.items()}
        return BatchFeature(inputs)

    def _features(self, samples_S: Tensor) -> Tensor:
        config = self.config
        window_samples = round(config["window_ms"] * config["sample_rate_hz"] / 1000)
        hop_samples = round(config["hop_ms"] * config["sample_rate_hz"] / 1000)
        if len(samples_S) < window_samples:
            return torch.zeros(0, self.feature_size)
        fft_size = 2 ** (window_samples - 1).bit_length()
        frames = samples_S.unfold(-1, window_samples, hop_samples)
        if config["kind"] == "kaldi":
            frames = frames - frames.mean(-1, keepdim=True)
            previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
            frames = frames - PREEMPHASIS * previous
            hann = torch.hann_window(window_samples, periodic=False, dtype=torch.float64)
            window = hann.pow(0.85).float()
        else:
            window = torch.hann_window(window_samples)
        spectrum = torch.view_as_real(torch.fft.rfft(frames * window, fft_size))
        power = spectrum.square().sum(-1) @ self._filters(fft_size)
        if config["kind"] == "kaldi":
            features_TF = power.clamp(min=config["floor"]).log()
        else:
            features_TF = (power + config["floor"]).log()
        return (features_TF - torch.tensor(self.mean)) / torch.tensor(self.std)

    def _filters(self, fft_size: int) -> Tensor:
        """Triangles between equal steps of the HTK mel scale [fft_size // 2 + 1, F]."""
        config = self.config
        num_bins = fft_size // 2 + 1
        half_rate_hz = config["sample_rate_hz"] / 2
        high_hz = config["high_hz"] or half_rate_hz
        if config["kind"] == "log_mel":
            # Triangles over frequency, in the numbers of torchaudio's melscale_fbanks.
            frequencies_N = torch.linspace(0, config["sample_rate_hz"] // 2, num_bins)
            low = 2595.0 * math.log10(1.0 + config["low_hz"] / 700.0)
            high = 2595.0 * math.log10(1.0 + high_hz / 700.0)
            mel_points = torch.linspace(low, high, self.feature_size + 2)
            points = 700.0 * (10.0 ** (mel_points / 2595.0) - 1.0)
            widths = points[1:] - points[:-1]
            slopes = points.unsqueeze(0) - frequencies_N.unsqueeze(1)
            falling = -slopes[:, :-2] / widths[:-1]
            rising = slopes[:, 2:] / widths[1:]
            return torch.minimum(falling, rising).clamp(min=0)

        # Triangles over the mel scale, as in Kaldi.
        edges_hz = torch.tensor([config["low_hz"], high_hz], dtype=torch.float64)
        low, high = _mel(edges_hz).tolist()
        step = (high - low) / (self.feature_size + 1)
        left_F = low + step * torch.arange(self.feature_size, dtype=torch.float64)
        frequencies_N = torch.arange(num_bins, dtype=torch.float64) * config["sample_rate_hz"] / fft_size
        position_NF = (_mel(frequencies_N)[:, None] - left_F) / step
        filters_NF = torch.minimum(position_NF, 2 - position_NF).clamp_min(0)
        # Kaldi counts half the rate to no filter.
        filters_NF[-1] = 0
        return filters_NF.float()


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hertz / 700)
