"""A frozen random quantizer, whose codes are the targets of a model that learns without transcripts.

The features of one encoder frame are stacked and projected by a random matrix; the target is the index of the nearest
of random codes (Chiu et al., BEST-RQ, 2022, equation 1). Nothing of it is learnt: projection and codes are buffers,
drawn with the model's weights and kept in its checkpoints. Several quantizers side by side give several targets (Zhang
et al., USM, 2023).

Shapes: B batch, T feature frames, S encoder frames, F mel bins, I = factor F stacked features, N chosen frames, Q
codebooks, C codes of each, P width of a code.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional


class QuantizerConfig(BaseModel, frozen=True, extra="forbid"):
    codebooks: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="quantizers, each with a projection and codes of its own",
    )
    codes: int = Field(
        default=8192,
        ge=2,
        le=2**20,
        description="codes of each codebook",
    )
    code_width: int = Field(
        default=16,
        ge=1,
        le=65_536,
        description="width that features are projected to, and of each code",
    )


class RandomProjectionQuantizer(nn.Module):
    """Codes of stacked features; expects them with mean 0 and variance 1, without which few codes would be used."""

    projections_QIP: Tensor
    codes_QCP: Tensor

    def __init__(
        self,
        config: QuantizerConfig,
        mel_bins: int,
        factor: int,
    ):
        super().__init__()
        self.config = config
        self.factor = factor
        projections_QIP = torch.empty(config.codebooks, factor * mel_bins, config.code_width)
        # One by one: of the whole tensor Xavier's bound would count the codebooks too.
        for projection_IP in projections_QIP:
            nn.init.xavier_uniform_(projection_IP)
        codes_QCP = torch.randn(config.codebooks, config.codes, config.code_width)
        self.register_buffer("projections_QIP", projections_QIP)
        self.register_buffer("codes_QCP", functional.normalize(codes_QCP, dim=-1))

    @torch.no_grad()
    def forward(self, features_BTF: Tensor, chosen_BS: Tensor) -> Tensor:
        """The codes of the chosen encoder frames: int64 [N, Q], in the order of `chosen_BS` [B, S].

        Encoder frame s is made of the features factor s to factor (s + 1) - 1, with zeros beyond the last.
        """
        # Codes must not depend on the precision of a run.
        with torch.autocast(features_BTF.device.type, enabled=False):
            num_missing = -features_BTF.shape[1] % self.factor
            features_BTF = features_BTF.float()
            padded_BTF = functional.pad(features_BTF, (0, 0, 0, num_missing))
            grouped = padded_BTF.unflatten(1, (-1, self.factor))
            stacked_BSI = grouped.flatten(2)
            chosen_NI = stacked_BSI[chosen_BS]
            projected_QNP = torch.einsum("ni,qip->qnp", chosen_NI, self.projections_QIP)
            # The nearest by angle: codes have length 1, and a projection's length changes no comparison.
            similarity_QNC = torch.einsum("qnp,qcp->qnc", projected_QNP, self.codes_QCP)
            return similarity_QNC.argmax(-1).T
