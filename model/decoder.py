"""A Transformer decoder over the encoder's frames, for the attention half of the joint objective.

It reads whole texts when it is trained and asked for probabilities, and token by token when it writes, with the keys
and values of what it has read kept (`DecoderState`); both give the same logits.

Shapes: B batch, U tokens, S encoder frames, D width, H heads, K head width, V vocabulary, J hypotheses per utterance.
"""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from model.layers.attention import RotaryPositions, SelfAttention, attend_to_valid, rotate, split_heads
from model.layers.feedforward import FeedForward


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    feedforward_width: int = Field(default=1024, ge=1, description="hidden width of the feed-forward layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    right_to_left_layers: int = Field(
        default=0, ge=0, description="layers of a second decoder that reads texts backwards, for rescoring; 0: none"
    )


class CrossAttention(nn.Module):
    """Tokens attend to encoder frames."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BUD: Tensor, memory_BSD: Tensor, attend_B11S: Tensor | None) -> Tensor:
        return self.attend(x_BUD, *self.memory(memory_BSD), attend_B11S)

    def memory(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, K] of the encoder's frames."""
        key_value = self.key_value(memory_BSD).view(*memory_BSD.shape[:2], 2, self.heads, -1)
        key_BHSK, value_BHSK = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        return key_BHSK, value_BHSK

    def attend(self, x_BUD: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, attend_B11S: Tensor | None) -> Tensor:
        batch, tokens, width = x_BUD.shape
        query = self.query(x_BUD).view(batch, tokens, self.heads, -1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key_BHSK, value_BHSK, attend_B11S)
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

    def step(
        self,
        x_BJD: Tensor,
        position: tuple[Tensor, Tensor],
        read: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor],
        attend_B11S: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token of each hypothesis, and the keys and values that the next one will read with it."""
        attended_BJD, read = self._attend_to_read(self.attention_norm(x_BJD), position, read)
        x_BJD = x_BJD + attended_BJD
        # To the frames, the hypotheses of an utterance are so many queries.
        x_BJD = x_BJD + self.cross.attend(self.cross_norm(x_BJD), *memory, attend_B11S)
        return x_BJD + self.feedforward(self.feedforward_norm(x_BJD)), read

    def _attend_to_read(
        self, x_BJD: Tensor, position: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, heads = x_BJD.shape[0] * x_BJD.shape[1], self.attention.heads
        query, key, value = split_heads(self.attention.query_key_value(x_BJD).view(rows, 1, -1), heads)
        query, key = rotate(query, *position), rotate(key, *position)
        if read is not None:
            key, value = torch.cat((read[0], key), dim=2), torch.cat((read[1], value), dim=2)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.attention.output(mixed.transpose(1, 2).reshape(x_BJD.shape)), (key, value)


@dataclass
class DecoderState:
    """What a decoder keeps of utterances and of the tokens that their J hypotheses each have so far.

    attend_B11S True at real encoder frames; per layer memory (keys, values) [B, H, S, K] of the frames and read (keys,
    values) [B J, H, U, K] of the tokens; num_tokens U.
    """

    attend_B11S: Tensor
    memory: list[tuple[Tensor, Tensor]]
    read: list[tuple[Tensor, Tensor]]
    num_tokens: int = 0

    def select(self, source_BJ: Tensor) -> None:
        """Go on with other hypotheses of the same utterances, named by their numbers."""
        batch, hypotheses = source_BJ.shape
        before = self.read[0][0].shape[0] // batch
        rows = (source_BJ + before * torch.arange(batch, device=source_BJ.device)[:, None]).flatten()
        assert len(rows) == batch * hypotheses
        self.read = [(key[rows], value[rows]) for key, value in self.read]


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
        x_BUD, attend_B11S = self._embed(tokens_BU), attend_to_valid(valid_BS)
        positions = self.positions(tokens_BU.shape[1])
        for layer in self.layers:
            x_BUD = layer(x_BUD, positions, memory_BSD, attend_B11S)
        return self.output(self.norm(x_BUD))

    def begin(self, memory_BSD: Tensor, valid_BS: Tensor) -> DecoderState:
        """The state before the first token."""
        memory = [layer.cross.memory(memory_BSD) for layer in self._layers()]
        return DecoderState(attend_to_valid(valid_BS), memory, read=[])

    def step(self, state: DecoderState, tokens_BJ: Tensor) -> Tensor:
        """Read one more token of each hypothesis into the state: logits [B, J, V] of the token after it."""
        x_BJD = self._embed(tokens_BJ)
        cos_UK, sin_UK = self.positions(state.num_tokens + 1)
        read = []
        for number, layer in enumerate(self._layers()):
            before = state.read[number] if state.read else None
            x_BJD, kept = layer.step(x_BJD, (cos_UK[-1:], sin_UK[-1:]), before, state.memory[number], state.attend_B11S)
            read.append(kept)
        state.read, state.num_tokens = read, state.num_tokens + 1
        return self.output(self.norm(x_BJD))

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.embedding.embedding_dim**0.5


def shift_right(tokens_BU: Tensor, start: int) -> Tensor:
    """The decoder's input: `start` before the tokens, [B, U + 1]."""
    return functional.pad(tokens_BU, (1, 0), value=start)


def reverse(tokens_BU: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's first `lengths_B` tokens backwards; what is after them stays."""
    position_BU = torch.arange(tokens_BU.shape[1], device=tokens_BU.device).expand_as(tokens_BU)
    mirrored_BU = lengths_B[:, None] - 1 - position_BU
    return tokens_BU.gather(1, torch.where(mirrored_BU >= 0, mirrored_BU, position_BU))


def append_end(tokens_BU: Tensor, lengths_B: Tensor, end: int) -> Tensor:
    """The decoder's target: `end` after each row's last valid token, [B, U + 1]."""
    target = functional.pad(tokens_BU, (0, 1))
    return target.scatter(1, lengths_B[:, None], torch.full_like(lengths_B[:, None], end))
