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
        num_codebooks = self.codes_NQ.shape[1]
        logits = self.logits_NQC.float().flatten(0, 1)
        codes = self.codes_NQ.flatten()
        loss = functional.cross_entropy(logits, codes, reduction="sum")
        return loss / num_codebooks

    def num_correct(self) -> Tensor:
        """Sum over masked frames of the share of their codes whose logit is the highest."""
        predicted_NQ = self.logits_NQC.argmax(-1)
        correct_NQ = predicted_NQ == self.codes_NQ
        share_N = correct_NQ.float().mean(1)
        return share_N.sum()

    def code_counts(self) -> Tensor:
        """How often each code is a target: int64 [Q, C]."""
        _, num_codebooks, num_codes = self.logits_NQC.shape
        codebooks_Q = torch.arange(num_codebooks, device=self.codes_NQ.device)
        # One count for all codebooks: the codes of the q-th begin at q C.
        index_NQ = self.codes_NQ + num_codes * codebooks_Q
        num_counts = num_codebooks * num_codes
        counts = torch.bincount(index_NQ.flatten(), minlength=num_counts)
        return counts.view(num_codebooks, num_codes)


class MaskedPredictor(nn.Module):
    """Log-mel features, of which some are masked, to logits of the codes at masked frames."""

    def __init__(self, config: MaskedPredictorConfig, mel_bins: int):
        super().__init__()
        self.config = config
        self.mel_bins = mel_bins
        quantizer = config.quantizer
        factor = config.encoder.subsampling.factor
        num_logits = quantizer.codebooks * quantizer.codes
        self.encoder = Encoder(config.encoder, mel_bins)
        self.quantizer = RandomProjectionQuantizer(quantizer, mel_bins, factor)
        # The heads of all codebooks are one matrix.
        self.heads = nn.Linear(config.encoder.width, num_logits)

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
        # Heads at masked frames alone: elsewhere there is nothing to predict.
        frames_ND = encoder.frames_BSD[predicted_BS]
        logits = self.heads(frames_ND)
        quantizer = self.config.quantizer
        logits_NQC = logits.unflatten(-1, (quantizer.codebooks, quantizer.codes))
        return MaskedPredictorOutput(encoder, logits_NQC, codes_NQ)


Model: TypeAlias = Recognizer | MaskedPredictor


def evenness(counts_QC: Tensor) -> Tensor:
    """How evenly codes are used: 1 is even, 0 one code alone. 0 where there are fewer than two frames.

    `counts_QC` is how often each was. It is the entropy over the highest that so many frames and codes can have, as a
    mean over codebooks.
    """
    # Every codebook codes every frame.
    num_frames = counts_QC[0].sum()
    num_codes = torch.tensor(counts_QC.shape[1], device=counts_QC.device)
    num_used = torch.minimum(num_frames, num_codes)
    highest_entropy = num_used.double().log()

    share_QC = counts_QC.double() / num_frames.clamp(min=1)
    entropy_Q = torch.special.entr(share_QC).sum(1)
    # Of one frame the highest entropy is log 1 = 0: clamped, so that nothing is divided by it.
    highest_entropy = highest_entropy.clamp(min=1e-9)
    share_of_highest = entropy_Q.mean() / highest_entropy
    return torch.where(num_frames > 1, share_of_highest, 0.0)
