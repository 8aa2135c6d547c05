"""A left-to-right Transformer decoder over the encoder's frames, for the attention half of the joint objective.

Shapes: B batch, U tokens, S encoder frames, D width, H heads, K head width, V vocabulary.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from model.attention import RotaryPositions, SelfAttention
from model.feedforward import FeedForward


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    feedforward_width: int = Field(default=1024, ge=1, description="hidden width of the feed-forward layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)


class CrossAttention(nn.Module):
    """Tokens attend to encoder frames."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BUD: Tensor, memory_BSD: Tensor, attend_B11S: Tensor | None) -> Tensor:
        batch, tokens, width = x_BUD.shape
        query = self.query(x_BUD).view(batch, tokens, self.heads, -1).transpose(1, 2)
        key_value = self.key_value(memory_BSD).view(batch, memory_BSD.shape[1], 2, self.heads, -1)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attend_B11S)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))


class DecoderLayer(nn.Module):
    """Pre-norm: causal attention, attention to the encoder, feed-forward."""

    def __init__(self, width: int, config: DecoderConfig):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, config.heads, causal=True)
        self.cross_norm, self.cross = nn.LayerNorm(width), CrossAttention(width, config.heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, config.feedforward_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BUD: Tensor, positions, memory_BSD: Tensor, attend_B11S: Tensor | None) -> Tensor:
        x_BUD = x_BUD + self.dropout(self.attention(self.attention_norm(x_BUD), positions))
        x_BUD = x_BUD + self.dropout(self.cross(self.cross_norm(x_BUD), memory_BSD, attend_B11S))
        return x_BUD + self.dropout(self.feedforward(self.feedforward_norm(x_BUD)))


class Decoder(nn.Module):
    """Predicts each next token from the tokens before it and the encoder's frames."""

    def __init__(self, config: DecoderConfig, width: int, vocabulary_size: int):
        super().__init__()
        if width % (2 * config.heads):
            raise ValueError(f"decoder.heads {config.heads} does not split the encoder width {width} evenly")
        self.embedding = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.positions = RotaryPositions(width // config.heads)
        self.layers = nn.ModuleList(DecoderLayer(width, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size)

    def forward(self, memory_BSD: Tensor, valid_BS: Tensor, tokens_BU: Tensor) -> Tensor:
        """Logits [B, U, V] of the token after each of `tokens_BU`; `valid_BS` is True at real encoder frames."""
        attend_BS = valid_BS.clone()
        attend_BS[:, 0] = True  # an empty utterance still needs one key
        x_BUD = self.embedding(tokens_BU) * self.embedding.embedding_dim**0.5
        positions = self.positions(tokens_BU.shape[1])
        for layer in self.layers:
            x_BUD = layer(x_BUD, positions, memory_BSD, attend_BS[:, None, None, :])
        return self.output(self.norm(x_BUD))


def shift_right(tokens_BU: Tensor, start: int) -> Tensor:
    """The decoder's input: `start` before the tokens, [B, U + 1]."""
    return functional.pad(tokens_BU, (1, 0), value=start)


def append_end(tokens_BU: Tensor, lengths_B: Tensor, end: int) -> Tensor:
    """The decoder's target: `end` after each row's last valid token, [B, U + 1]."""
    target = functional.pad(tokens_BU, (0, 1))
    return target.scatter(1, lengths_B[:, None], torch.full_like(lengths_B[:, None], end))
