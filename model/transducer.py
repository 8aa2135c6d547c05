"""The transducer's half beside the encoder: a prediction network over the last few tokens, and a joint network.

-log p(tokens | frames) sums over every monotonic path of tokens and blanks (Graves, 2012). The prediction network is
stateless (Ghodsi et al., 2020): it sees a fixed number of tokens and nothing before them, so that a search keeps no
more than those. The tensor of all pairs of frame and token is made for one utterance at a time and made again in the
backward pass: what it takes is bounded by the longest utterance, not by the batch.

Shapes: B batch, S encoder frames, U tokens, C context tokens, D encoder width, W joint width, V vocabulary.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchaudio.functional import rnnt_loss


class TransducerConfig(BaseModel, frozen=True, extra="forbid"):
    width: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="width of the prediction network and of the joint network",
    )
    context: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="tokens that the prediction network sees before the next one",
    )


class PredictionNetwork(nn.Module):
    """Embeds tokens and mixes each with those before it, channel by channel."""

    def __init__(self, width: int, context: int, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.mixing = nn.Conv1d(width, width, context, groups=width)

    def forward(self, tokens_BU: Tensor) -> Tensor:
        """Tokens [B, C - 1 + U], of which the first C - 1 are context only, to [B, U, W]."""
        embedded_BWU = self.embedding(tokens_BU).transpose(1, 2)
        return torch.relu(self.mixing(embedded_BWU)).transpose(1, 2)


class JointNetwork(nn.Module):
    """Token logits of a frame and a prediction: linear(tanh(frame + prediction)).

    Its matrix is used once per utterance, inside one call: what shards weights over processes gathers it once, however
    many utterances a process has.
    """

    def __init__(
        self,
        width: int,
        vocabulary_size: int,
        blank: int,
    ):
        super().__init__()
        self.blank = blank
        self.weight = nn.Parameter(torch.empty(vocabulary_size, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        # As nn.Linear draws its weight.
        bound = width**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def logits(self, joint: Tensor) -> Tensor:
        """Sums of frames and predictions [..., W] to fp32 logits [..., V]."""
        logits = functional.linear(joint.tanh(), self.weight, self.bias)
        return logits.float()

    def forward(
        self,
        frames_BSW: Tensor,
        predictions_BUW: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor,
        token_lengths_B: Tensor,
    ) -> Tensor:
        """-log p(tokens | frames) of each utterance, fp32 [B]; 0, with a gradient of 0, for those without frames."""
        # An utterance without frames is given one, so that every parameter has a gradient, which the last line makes 0.
        all_num_frames = lengths_B.clamp(min=1).tolist()
        all_num_tokens = token_lengths_B.tolist()
        losses = []
        for row, (num_frames, num_tokens) in enumerate(zip(all_num_frames, all_num_tokens, strict=True)):
            # The backward pass computes it again: otherwise the tensors of all pairs of frame and token would wait for
            # it, those of the whole batch.
            loss_1 = checkpoint(
                self._loss,
                frames_BSW[row, :num_frames],
                predictions_BUW[row, : num_tokens + 1],
                tokens_BU[row, :num_tokens],
                use_reentrant=False,
                preserve_rng_state=False,  # nothing in it is random
            )
            losses.append(loss_1)
        return torch.where(lengths_B > 0, torch.cat(losses), 0.0)

    def _loss(
        self,
        frames_SW: Tensor,
        predictions_UW: Tensor,
        tokens_U: Tensor,
    ) -> Tensor:
        """The loss of one utterance, as a batch of one: fp32 [1]."""
        joint_SUW = frames_SW[:, None] + predictions_UW
        device = tokens_U.device
        # torchaudio's loss takes int32 alone.
        num_frames = torch.tensor([len(frames_SW)], dtype=torch.int32, device=device)
        num_tokens = torch.tensor([len(tokens_U)], dtype=torch.int32, device=device)
        targets_1U = tokens_U.to(torch.int32)[None].contiguous()
        return rnnt_loss(
            logits=self.logits(joint_SUW)[None],
            targets=targets_1U,
            logit_lengths=num_frames,
            target_lengths=num_tokens,
            blank=self.blank,
            reduction="none",
        )


class Transducer(nn.Module):
    """Prediction and joint network over the encoder's frames. Before the first token stand blanks."""

    def __init__(
        self,
        config: TransducerConfig,
        width: int,
        vocabulary_size: int,
        blank: int,
    ):
        super().__init__()
        self.config = config
        self.blank = blank
        self.prediction = PredictionNetwork(config.width, config.context, vocabulary_size)
        self.frames = nn.Linear(width, config.width)
        self.joint = JointNetwork(config.width, vocabulary_size, blank)

    def forward(
        self,
        frames_BSD: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor,
        token_lengths_B: Tensor,
    ) -> Tensor:
        """-log p(tokens | frames) of each utterance, fp32 [B], from frames [B, S, D] and tokens [B, U]."""
        # Before the first token stand blanks. U + 1 predictions: one before each token and one after the last.
        padded_BU = functional.pad(tokens_BU, (self.config.context, 0), value=self.blank)
        predictions_BUW = self.prediction(padded_BU)
        return self.joint(self.frames(frames_BSD), predictions_BUW, lengths_B, tokens_BU, token_lengths_B)
