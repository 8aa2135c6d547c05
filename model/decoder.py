"""A Transformer decoder over the encoder's frames, for the attention half of the joint objective.

In training, and to score whole texts, it reads all their tokens at once (`Decoder.forward`). To write a text it goes
token by token and keeps the keys and values of the tokens before (`Decoder.step`, `DecoderState`). Both give the same
logits.

Shapes: B batch, U tokens, S encoder frames, D width, H heads, K head width, V vocabulary, J hypotheses per utterance.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from model.layers.attention import (
    RotaryPositions,
    SelfAttention,
    rotate,
    split_heads,
    valid_key_mask,
)
from model.layers.feedforward import FeedForward

KeyValue: TypeAlias = tuple[Tensor, Tensor]


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(default=3, ge=1, le=1000, description="decoder layers")
    heads: int = Field(default=4, ge=1, le=1024, description="attention heads")
    feedforward_width: int = Field(
        default=1024,
        ge=1,
        le=2**20,
        description="hidden width of the feed-forward layers",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of values set to zero while training")
    right_to_left_layers: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="layers of a second decoder that reads texts backwards, for rescoring; 0: none",
    )


class CrossAttention(nn.Module):
    """Tokens attend to encoder frames."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x_BUD: Tensor,
        frames_BSD: Tensor,
        mask_B11S: Tensor | None,
    ) -> Tensor:
        key_BHSK, value_BHSK = self.memory(frames_BSD)
        return self.attend(x_BUD, key_BHSK, value_BHSK, mask_B11S)

    def memory(self, frames_BSD: Tensor) -> KeyValue:
        """Keys and values [B, H, S, K] of the encoder's frames."""
        batch, num_frames, _ = frames_BSD.shape
        key_value = self.key_value(frames_BSD)
        key_value_BS2HK = key_value.view(batch, num_frames, 2, self.heads, -1)
        key_value_2BHSK = key_value_BS2HK.permute(2, 0, 3, 1, 4)
        key_BHSK, value_BHSK = key_value_2BHSK.unbind(0)
        return key_BHSK, value_BHSK

    def attend(
        self,
        x_BUD: Tensor,
        key_BHSK: Tensor,
        value_BHSK: Tensor,
        mask_B11S: Tensor | None,
    ) -> Tensor:
        """Tokens [B, U, D] to [B, U, D], over keys and values that `memory` gave."""
        batch, tokens, width = x_BUD.shape
        query_BUD = self.query(x_BUD)
        query_BUHK = query_BUD.view(batch, tokens, self.heads, -1)
        query_BHUK = query_BUHK.transpose(1, 2)
        mixed_BHUK = functional.scaled_dot_product_attention(
            query_BHUK,
            key_BHSK,
            value_BHSK,
            mask_B11S,
        )
        mixed_BUHK = mixed_BHUK.transpose(1, 2)
        return self.output(mixed_BUHK.reshape(batch, tokens, width))


class DecoderLayer(nn.Module):
    """Pre-norm: causal attention, attention to the encoder, feed-forward."""

    def __init__(self, width: int, config: DecoderConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, config.heads, causal=True)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, config.heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, config.feedforward_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BUD: Tensor,
        positions: tuple[Tensor, Tensor],
        frames_BSD: Tensor,
        mask_B11S: Tensor | None,
    ) -> Tensor:
        normed_BUD = self.attention_norm(x_BUD)
        added_BUD = self.attention(normed_BUD, positions)
        x_BUD = x_BUD + self.dropout(added_BUD)

        normed_BUD = self.cross_norm(x_BUD)
        added_BUD = self.cross(normed_BUD, frames_BSD, mask_B11S)
        x_BUD = x_BUD + self.dropout(added_BUD)

        normed_BUD = self.feedforward_norm(x_BUD)
        added_BUD = self.feedforward(normed_BUD)
        return x_BUD + self.dropout(added_BUD)

    def step(
        self,
        x_BJD: Tensor,
        position: tuple[Tensor, Tensor],
        past: KeyValue | None,
        memory: KeyValue,
        mask_B11S: Tensor,
    ) -> tuple[Tensor, KeyValue]:
        """One token of each hypothesis, and the keys and values for the next one: `past` with this token's behind it.

        In evaluation: there is no dropout. `position` is (cos, sin) of the token.
        """
        normed_BJD = self.attention_norm(x_BJD)
        packed = self.attention.query_key_value(normed_BJD)
        # Hypotheses do not attend to each other: each is a row of a batch with one token.
        batch, hypotheses, _ = x_BJD.shape
        packed = packed.view(batch * hypotheses, 1, -1)
        query, key, value = split_heads(packed, self.attention.heads)
        query = rotate(query, *position)
        key = rotate(key, *position)
        if past is not None:
            past_key, past_value = past
            key = torch.cat((past_key, key), dim=2)
            value = torch.cat((past_value, value), dim=2)

        # No mask: everything that is kept is before the token, and one token per row has no later ones to hide.
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed_BJD = mixed.transpose(1, 2).reshape(x_BJD.shape)
        x_BJD = x_BJD + self.attention.output(mixed_BJD)

        # To the frames, the hypotheses of an utterance are so many queries.
        key_BHSK, value_BHSK = memory
        normed_BJD = self.cross_norm(x_BJD)
        added_BJD = self.cross.attend(normed_BJD, key_BHSK, value_BHSK, mask_B11S)
        x_BJD = x_BJD + added_BJD

        normed_BJD = self.feedforward_norm(x_BJD)
        x_BJD = x_BJD + self.feedforward(normed_BJD)
        return x_BJD, (key, value)


@dataclass
class DecoderState:
    """What a decoder keeps of utterances, and of the tokens that their J hypotheses each have so far.

    mask_B11S: True at valid encoder frames. Of each layer, memory: keys and values [B, H, S, K] of the frames, and
    past: keys and values [B J, H, U, K] of the tokens, none before the first. num_tokens: U.
    """

    mask_B11S: Tensor
    memory: list[KeyValue]
    past: list[KeyValue]
    num_tokens: int = 0

    def select(self, source_BJ: Tensor) -> None:
        """Go on with other hypotheses of the same utterances: each is a copy of the one that its number names."""
        batch, hypotheses = source_BJ.shape
        first_key, _ = self.past[0]
        hypotheses_before = first_key.shape[0] // batch
        # The J rows of an utterance lie side by side.
        utterance_B = torch.arange(batch, device=source_BJ.device)
        first_row_B = hypotheses_before * utterance_B
        rows = (source_BJ + first_row_B[:, None]).flatten()
        assert len(rows) == batch * hypotheses
        selected = []
        for key, value in self.past:
            selected.append((key[rows], value[rows]))
        self.past = selected


class Decoder(nn.Module):
    """Predicts each next token from the tokens before it and the encoder's frames."""

    def __init__(
        self,
        config: DecoderConfig,
        width: int,
        vocabulary_size: int,
    ):
        super().__init__()
        if width % (2 * config.heads):
            raise ValueError(f"decoder.heads {config.heads} does not split the encoder width {width} evenly")
        self.embedding = nn.Embedding(vocabulary_size, width)
        # With the factor of `_embed`, embeddings have variance 1.
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.positions = RotaryPositions(width // config.heads)
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            self.layers.append(DecoderLayer(width, config))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size)

    def forward(
        self,
        frames_BSD: Tensor,
        valid_BS: Tensor,
        tokens_BU: Tensor,
    ) -> Tensor:
        """Logits [B, U, V] of the token after each of `tokens_BU`; `valid_BS` is True at valid encoder frames."""
        num_tokens = tokens_BU.shape[1]
        x_BUD = self._embed(tokens_BU)
        mask_B11S = valid_key_mask(valid_BS)
        positions = self.positions(num_tokens)
        for layer in self.layers:
            x_BUD = layer(x_BUD, positions, frames_BSD, mask_B11S)
        return self.output(self.norm(x_BUD))

    def begin(self, frames_BSD: Tensor, valid_BS: Tensor) -> DecoderState:
        """The state before the first token."""
        # The frames do not change from token to token: their keys and values are computed once.
        memory = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            memory.append(layer.cross.memory(frames_BSD))
        return DecoderState(valid_key_mask(valid_BS), memory, past=[])

    def step(self, state: DecoderState, tokens_BJ: Tensor) -> Tensor:
        """Read one more token of each hypothesis into the state: logits [B, J, V] of the token after it."""
        x_BJD = self._embed(tokens_BJ)
        # Of all positions the last: the keys of the tokens before were turned by theirs when they were read.
        cos_UK, sin_UK = self.positions(state.num_tokens + 1)
        position = (cos_UK[-1:], sin_UK[-1:])

        new_past = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            past = None
            if state.past:
                past = state.past[index]
            x_BJD, layer_past = layer.step(
                x_BJD,
                position,
                past,
                state.memory[index],
                state.mask_B11S,
            )
            new_past.append(layer_past)

        state.past = new_past
        state.num_tokens += 1
        return self.output(self.norm(x_BJD))

    def _embed(self, tokens: Tensor) -> Tensor:
        width = self.embedding.embedding_dim
        return self.embedding(tokens) * width**0.5


def shift_right(tokens_BU: Tensor, start: int) -> Tensor:
    """The decoder's input: `start` before the tokens, [B, U + 1]."""
    return functional.pad(tokens_BU, (1, 0), value=start)


def reverse(tokens_BU: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's first `lengths_B` tokens backwards; what is after them stays."""
    num_tokens = tokens_BU.shape[1]
    position_U = torch.arange(num_tokens, device=tokens_BU.device)
    position_BU = position_U.expand_as(tokens_BU)
    last_B1 = lengths_B[:, None] - 1
    # Negative after the last token, where nothing is mirrored.
    mirrored_BU = last_B1 - position_BU
    source_BU = torch.where(mirrored_BU >= 0, mirrored_BU, position_BU)
    return tokens_BU.gather(1, source_BU)


def append_end(
    tokens_BU: Tensor,
    lengths_B: Tensor,
    end: int,
) -> Tensor:
    """The decoder's target: `end` after each row's last valid token, [B, U + 1]."""
    # One place more, as a row without padding has none for its end.
    target_BU = functional.pad(tokens_BU, (0, 1))
    after_last_B1 = lengths_B[:, None]
    end_B1 = torch.full_like(after_last_B1, end)
    return target_BU.scatter(1, after_last_B1, end_B1)
