"""An encoder that learns from recordings alone: it predicts the codes of frames that it was not let hear.

The encoder reads features of which spans are replaced by noise; at each masked frame a linear head per codebook
predicts the code that a frozen quantizer gives to what was there (Chiu et al., BEST-RQ, 2022). The heads serve nothing
else: what is kept of such a model is its encoder.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, N masked encoder frames, Q codebooks, C codes of each,
D width.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import Encoder, EncoderConfig, EncoderOutput
from model.quantizer import QuantizerConfig, RandomProjectionQuantizer
from model.recognizer import Recognizer


class MaskedPredictorConfig(BaseModel, frozen=True, extra="forbid"):
    encoder: EncoderConfig = EncoderConfig()
    quantizer: QuantizerConfig = Field(default_factory=QuantizerConfig, description="what gives the codes to predict")


@dataclass
class MaskedPredictorOutput:
    """encoder its output, logits_NQC of each masked frame's codes, codes_NQ those that are right."""

    encoder: EncoderOutput
    logits_NQC: Tensor
    codes_NQ: Tensor

    def loss_sum(self) -> Tensor:
        """Sum over masked frames of the cross-entropy of their codes, as a mean over codebooks; fp32."""
        loss = functional.cross_entropy(self.logits_NQC.float().flatten(0, 1), self.codes_NQ.flatten(), reduction="sum")
        return loss / self.codes_NQ.shape[1]

    def num_correct(self) -> Tensor:
        """Sum over masked frames of the share of their codes that is predicted best."""
        return (self.logits_NQC.argmax(-1) == self.codes_NQ).float().mean(1).sum()

    def code_counts(self) -> Tensor:
        """How often each code is right: int64 [Q, C]."""
        _, num_codebooks, num_codes = self.logits_NQC.shape
        offsets_Q = num_codes * torch.arange(num_codebooks, device=self.codes_NQ.device)
        counts = torch.bincount((self.codes_NQ + offsets_Q).flatten(), minlength=num_codebooks * num_codes)
        return counts.view(num_codebooks, num_codes)


class MaskedPredictor(nn.Module):
    """Log-mel features, of which some are hidden, to the codes of what is hidden."""

    def __init__(self, config: MaskedPredictorConfig, mel_bins: int):
        super().__init__()
        self.config, self.mel_bins = config, mel_bins
        self.encoder = Encoder(config.encoder, mel_bins)
        quantizer = config.quantizer
        self.quantizer = RandomProjectionQuantizer(quantizer, mel_bins, config.encoder.subsampling.factor)
        self.heads = nn.Linear(config.encoder.width, quantizer.codebooks * quantizer.codes)

    def forward(
        self, features_BTF: Tensor, lengths_B: Tensor, hidden_BTF: Tensor, predicted_BS: Tensor
    ) -> MaskedPredictorOutput:
        """Features [B, T, F] as they are and with noise in masked spans (`hidden_BTF`), valid lengths [B], and which
        encoder frames are to be predicted: bool [B, S]."""
        codes_NQ = self.quantizer(features_BTF, predicted_BS)
        encoder = self.encoder(hidden_BTF, lengths_B)
        logits = self.heads(encoder.frames_BSD[predicted_BS])
        quantizer = self.config.quantizer
        return MaskedPredictorOutput(encoder, logits.unflatten(-1, (quantizer.codebooks, quantizer.codes)), codes_NQ)


Model: TypeAlias = Recognizer | MaskedPredictor


def evenness(counts_QC: Tensor) -> Tensor:
    """How evenly codes are used, from how often each was: the entropy over the most that so many frames and codes can
    have, a mean over codebooks; 1 is even, 0 one code alone. 0 where there are fewer than two frames."""
    num_frames = counts_QC[0].sum()
    most = torch.minimum(num_frames, torch.tensor(counts_QC.shape[1], device=counts_QC.device)).double().log()
    entropy_Q = torch.special.entr(counts_QC.double() / num_frames.clamp(min=1)).sum(1)
    return torch.where(num_frames > 1, entropy_Q.mean() / most.clamp(min=1e-9), 0.0)
