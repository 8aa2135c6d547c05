"""Multi-head self-attention with rotary positions (Su et al., RoFormer, 2021, equation 34), with relative ones
(Dai et al., Transformer-XL, 2019, section 3.3), or with none.

Shapes: B batch, H heads, T frames, N packed valid frames, S frames attended to (more than T where a cache holds frames
before them), D model width, K head width, J = K / 2 pairs, P = 2 S - 1 offsets between frames.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.adapters import BlockAdapters
from model.layers.packing import Packing
from model.layers.streaming_cache import LayerCache
from model.layers.varlen_attention import attend_within

# Rotary (cos, sin), relative encodings [P, D], or none.
Positions: TypeAlias = tuple[Tensor, Tensor] | Tensor | None


class RotaryPositions(nn.Module):
    """Angles of rotary positions, computed once per length and shared by all layers of an encoder."""

    inverse_frequency: Tensor

    def __init__(self, head_width: int, base: float = 10_000.0):
        super().__init__()
        inverse_frequency = _inverse_frequency(head_width, base)
        # Not persistent: it follows from the configuration, and files hold only what was learnt.
        self.register_buffer("inverse_frequency", inverse_frequency, persistent=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [num_frames, head_width / 2], fp32."""
        device = self.inverse_frequency.device
        # fp32: bf16 holds no odd number above 256.
        positions = torch.arange(num_frames, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.inverse_frequency)
        return angles.cos(), angles.sin()


class RelativePositions(nn.Module):
    """Sinusoids of the offsets from a frame back to another, sines and cosines in turn (Dai et al., 2019)."""

    inverse_frequency: Tensor

    def __init__(self, width: int, base: float = 10_000.0):
        super().__init__()
        inverse_frequency = _inverse_frequency(width, base)
        self.register_buffer("inverse_frequency", inverse_frequency, persistent=False)

    def forward(self, num_frames: int) -> Tensor:
        """[2 num_frames - 1, width] fp32, of the offsets num_frames - 1 down to 1 - num_frames."""
        device = self.inverse_frequency.device
        largest = num_frames - 1
        offsets = torch.arange(largest, -num_frames, -1, device=device)
        angles = torch.outer(offsets.float(), self.inverse_frequency)
        sines = angles.sin()
        cosines = angles.cos()
        in_turns = torch.stack((sines, cosines), dim=-1)
        return in_turns.flatten(1)


def _inverse_frequency(width: int, base: float) -> Tensor:
    """The angle by which each pair of dimensions turns per frame [width / 2], fp32."""
    # On the CPU also where a model is only laid out, on the meta device: torch 2.14 would import its compiler for a
    # range there, which takes a second and 150 MB.
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    return base ** (-exponents / width)


def rotate(
    x_BHTK: Tensor,
    cos_TJ: Tensor,
    sin_TJ: Tensor,
) -> Tensor:
    """Turn each pair (k, k + K/2) of a query or key by its position's angle; keeps the dtype of x. J is K / 2."""
    # In the dtype of x: with fp32 angles bf16 queries and keys would become fp32.
    cos_TJ = cos_TJ.to(x_BHTK.dtype)
    sin_TJ = sin_TJ.to(x_BHTK.dtype)
    return _Rotation.apply(x_BHTK, cos_TJ, sin_TJ)


class _Rotation(torch.autograd.Function):
    """Passes over a query or key once each way, where autograd would keep and copy every intermediate result."""

    @staticmethod
    def forward(
        context,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:  # pyright: ignore
        context.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        cos, sin = context.saved_tensors
        # The gradient of a rotation is the rotation back.
        grad_x = _turn(gradient, cos, -sin)
        return grad_x, None, None


def _turn(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    output = torch.empty_like(x)
    first, second = x.chunk(2, dim=-1)
    turned_first, turned_second = output.chunk(2, dim=-1)
    # Written to the halves of the output: no parts are made that would have to be joined.
    # first' = first cos - second sin
    torch.mul(first, cos, out=turned_first)
    turned_first.addcmul_(second, sin, value=-1)
    # second' = second cos + first sin
    torch.mul(second, cos, out=turned_second)
    turned_second.addcmul_(first, sin)
    return output


def valid_key_mask(valid_BS: Tensor) -> Tensor:
    """[B, 1, 1, S], True at keys that may be attended to: the valid frames.

    Of an utterance without any the first, silent one: the softmax of a row without a key would be undefined.
    """
    mask_BS = valid_BS.clone()
    mask_BS[:, 0] = True
    return mask_BS[:, None, None, :]


def split_heads(packed_BTC: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 H K] to query, key and value [B, H, T, K]."""
    return _SplitHeads.apply(packed_BTC, heads)


class _SplitHeads(torch.autograd.Function):
    """The parts are views; their gradients are written side by side once."""

    @staticmethod
    def forward(context, packed: Tensor, heads: int):  # pyright: ignore
        batch, frames, width = packed.shape
        head_width = width // (3 * heads)
        packed_BT3HK = packed.view(batch, frames, 3, heads, head_width)
        parts_3BHTK = packed_BT3HK.permute(2, 0, 3, 1, 4)
        return parts_3BHTK.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(context, *gradients: Tensor):  # pyright: ignore
        batch, heads, frames, head_width = gradients[0].shape
        packed_BT3HK = gradients[0].new_empty(batch, frames, 3, heads, head_width)
        parts_3BHTK = packed_BT3HK.permute(2, 0, 3, 1, 4)
        for part, gradient in zip(parts_3BHTK, gradients, strict=True):
            part.copy_(gradient)
        grad_packed = packed_BT3HK.view(batch, frames, -1)
        return grad_packed, None


class SelfAttention(nn.Module):
    """Self-attention over the valid frames of each utterance, or, `causal`, over each position and those before it."""

    splits_utterances = True

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.causal = causal
        # One matrix for all three: one product, and one pass over the frames.
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        attention_mask: Tensor | None = None,
        cache: LayerCache | None = None,
        packing: Packing | None = None,
        adapters: BlockAdapters | None = None,
    ) -> Tensor:
        """Frames [B, T, D] to [B, T, D], or, with `packing`, [N, D] to [N, D].

        `attention_mask`, [B, 1, 1, S] or [B or 1, 1, T, S], is True at keys that may be attended to, None for all;
        causal attention takes none. `cache` holds the keys and values before these frames; `positions` are those of all
        keys.
        """
        # Projections are of single frames, so they work on packed ones.
        packed = self.query_key_value(x)
        if adapters is not None:
            packed = adapters.add("query_key_value", packed, x)
        if packing and self._goes_by_utterance(packing, attention_mask, cache, x.device):
            # All utterances are one row of a batch here.
            query, key, value = split_heads(packed[None], self.heads)
            if positions is not None:
                cos_SJ, sin_SJ = positions
                cos_NJ = cos_SJ[packing.columns]
                sin_NJ = sin_SJ[packing.columns]
                query = rotate(query, cos_NJ, sin_NJ)
                key = rotate(key, cos_NJ, sin_NJ)
            # The softmax over the keys of an utterance without frames would be undefined.
            lengths = [length for length in packing.lengths if length]
            mixed_HNK = attend_within(query[0], key[0], value[0], lengths)
            mixed_ND = mixed_HNK.transpose(0, 1).flatten(1)
            return self._project(mixed_ND, adapters)

        if packing:
            packed = packing.pad(packed)
        query, key, value = split_heads(packed, self.heads)
        if cache is not None:
            key, value = cache.append_kv(key, value)
        mixed_BHTK = self._mix(query, key, value, positions, attention_mask)
        mixed = mixed_BHTK.transpose(1, 2).flatten(2)
        if packing:
            mixed = packing.pack(mixed)
        return self._project(mixed, adapters)

    def _project(self, mixed: Tensor, adapters: BlockAdapters | None) -> Tensor:
        output = self.output(mixed)
        if adapters is None:
            return output
        return adapters.add("attention_output", output, mixed)

    def _goes_by_utterance(
        self,
        packing: Packing,
        attention_mask: Tensor | None,
        cache: LayerCache | None,
        device: torch.device,
    ) -> bool:
        """Whether to attend in one utterance after the other.

        That compares fewer pairs of frames where padding is much, in as many calls as there are utterances, which GPUs
        would wait for. It needs attention to be limited by padding alone.
        """
        if not self.splits_utterances or device.type != "cpu":
            return False
        if attention_mask is None or cache is not None:
            return False
        # One row for all queries of an utterance.
        only_padding = attention_mask.shape[2] == 1
        return only_padding and packing.uneven

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Positions,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Queries [B, H, T, K] to values [B, H, T, K] mixed over keys and values [B, H, S, K]."""
        if positions is not None:
            cos_SJ, sin_SJ = positions
            # Queries are the last of the frames that are attended to.
            num_queries = query.shape[2]
            cos_TJ = cos_SJ[-num_queries:]
            sin_TJ = sin_SJ[-num_queries:]
            query = rotate(query, cos_TJ, sin_TJ)
            key = rotate(key, cos_SJ, sin_SJ)
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attention_mask,
            is_causal=self.causal,
        )


class RelativeSelfAttention(SelfAttention):
    """Scores ((q + u) k + (q + v) W r) / sqrt(K): u and v weigh content and offset r for themselves."""

    splits_utterances = False  # offsets would have to be encoded for every length

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(width))
        self.position_bias = nn.Parameter(torch.zeros(width))

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Positions,
        attention_mask: Tensor | None,
    ) -> Tensor:
        assert isinstance(positions, Tensor)
        _, heads, frames, head_width = query.shape
        num_keys = key.shape[2]

        # Offsets below 1 - T are beyond the last key of every query.
        num_offsets = num_keys + frames - 1
        offsets_PD = positions[:num_offsets].to(self.position.weight.dtype)
        position_PHK = self.position(offsets_PD).view(-1, heads, head_width)
        position_HKP = position_PHK.permute(1, 2, 0)

        # The biases are parameters in fp32: under autocast the query has another dtype.
        content_bias_H1K = self.content_bias.view(heads, 1, head_width)
        content_query = query + content_bias_H1K.to(query.dtype)
        position_bias_H1K = self.position_bias.view(heads, 1, head_width)
        position_query = query + position_bias_H1K.to(query.dtype)

        # Scores of positions go in as the mask that the fused call adds to the scaled scores of contents: so they are
        # scaled here.
        scores = position_query @ position_HKP
        scores = _shift(scores, num_keys)
        scores = scores / math.sqrt(head_width)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -math.inf)
        return functional.scaled_dot_product_attention(content_query, key, value, scores)


def _shift(scores_BHTP: Tensor, num_keys: int) -> Tensor:
    """Scores by offset to scores by key: row t, key s from column T - 1 - t + s (Dai et al., 2019, appendix B).

    With one more column in front, a row is one longer than it is read, so each row is read one column further left.
    """
    batch, heads, frames, width = scores_BHTP.shape
    padded_BHTP = functional.pad(scores_BHTP, (1, 0))
    flat = padded_BHTP.view(batch, heads, -1)
    shifted_BHTP = flat[..., frames:].view(batch, heads, frames, width)
    return shifted_BHTP[..., :num_keys]
