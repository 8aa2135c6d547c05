"""An encoder that learns from recordings alone: it predicts the codes of frames that are masked in its input.

The encoder reads features of which spans are replaced by noise; at each masked frame a linear head per codebook
predicts the code that a frozen quantizer gives to the features that were there (Chiu et al., BEST-RQ, 2022). Heads and
quantizer serve nothing else: the finished model is the encoder.

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
    """The encoder's output, the logits of each masked frame's codes, and the codes themselves."""

    encoder: EncoderOutput
    logits_NQC: Tensor
    codes_NQ: Tensor

    def loss_sum(self) -> Tensor:
        """Sum over masked frames of the cross-entropy of their codes, as a mean over codebooks; fp32."""
        logits = self.logits_NQC.float().flatten(0, 1)
        loss = functional.cross_entropy(logits, self.codes_NQ.flatten(), reduction="sum")
        return loss / self.codes_NQ.shape[1]

    def num_correct(self) -> Tensor:
        """Sum over masked frames of the share of their codes whose logit is the highest."""
        correct_NQ = self.logits_NQC.argmax(-1) == self.codes_NQ
        return correct_NQ.float().mean(1).sum()

    def code_counts(self) -> Tensor:
        """How often each code is a target: int64 [Q, C]."""
        _, num_codebooks, num_codes = self.logits_NQC.shape
        # One count for all codebooks: the codes of the q-th begin at q C.
        offsets_Q = num_codes * torch.arange(num_codebooks, device=self.codes_NQ.device)
        index = (self.codes_NQ + offsets_Q).flatten()
        counts = torch.bincount(index, minlength=num_codebooks * num_codes)
        return counts.view(num_codebooks, num_codes)


class MaskedPredictor(nn.Module):
    """Log-mel features, of which some are masked, to logits of the codes at masked frames."""

    def __init__(self, config: MaskedPredictorConfig, mel_bins: int):
        super().__init__()
        self.config = config
        self.mel_bins = mel_bins
        quantizer = config.quantizer
        self.encoder = Encoder(config.encoder, mel_bins)
        self.quantizer = RandomProjectionQuantizer(quantizer, mel_bins, config.encoder.subsampling.factor)
        self.heads = nn.Linear(config.encoder.width, quantizer.codebooks * quantizer.codes)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        masked_BTF: Tensor,
        predicted_BS: Tensor,
    ) -> MaskedPredictorOutput:
        """Features [B, T, F] as they are and with noise in masked spans (`masked_BTF`), valid lengths [B], and which
        encoder frames are to be predicted: bool [B, S]."""
        codes_NQ = self.quantizer(features_BTF, predicted_BS)
        encoder = self.encoder(masked_BTF, lengths_B)
        logits = self.heads(encoder.frames_BSD[predicted_BS])
        num_codebooks = self.config.quantizer.codebooks
        num_codes = self.config.quantizer.codes
        logits_NQC = logits.unflatten(-1, (num_codebooks, num_codes))
        return MaskedPredictorOutput(encoder, logits_NQC, codes_NQ)


Model: TypeAlias = Recognizer | MaskedPredictor


def evenness(counts_QC: Tensor) -> Tensor:
    """How evenly codes are used: 1 is even, 0 one code alone. 0 where there are fewer than two frames.

    `counts_QC` is how often each was. It is the entropy over the highest that so many frames and codes can have, as a
    mean over codebooks.
    """
    num_frames = counts_QC[0].sum()
    num_codes = torch.tensor(counts_QC.shape[1], device=counts_QC.device)
    highest_entropy = torch.minimum(num_frames, num_codes).double().log()
    share_QC = counts_QC.double() / num_frames.clamp(min=1)
    entropy_Q = torch.special.entr(share_QC).sum(1)
    # Of one frame the highest entropy is log 1 = 0: clamped, so that nothing is divided by it.
    share_of_highest = entropy_Q.mean() / highest_entropy.clamp(min=1e-9)
    return torch.where(num_frames > 1, share_of_highest, 0.0)
