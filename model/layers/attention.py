"""Multi-head self-attention with rotary positions (Su et al., RoFormer, 2021, equation 34), with relative ones
(Dai et al., Transformer-XL, 2019, section 3.3), or with none.

Shapes: B batch, H heads, T frames, N packed valid frames, S frames attended to (more than T where a past is kept),
D model width, K head width, J = K / 2 pairs, P = 2 S - 1 offsets between frames.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

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
        inverse = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        self.register_buffer("inverse_frequency", inverse, persistent=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [num_frames, head_width / 2], fp32."""
        positions = torch.arange(num_frames, device=self.inverse_frequency.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inverse_frequency)
        return angles.cos(), angles.sin()


class RelativePositions(nn.Module):
    """Sinusoids of the offsets from a frame back to another, sines and cosines in turn (Dai et al., 2019)."""

    inverse_frequency: Tensor

    def __init__(self, width: int, base: float = 10_000.0):
        super().__init__()
        inverse = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        self.register_buffer("inverse_frequency", inverse, persistent=False)

    def forward(self, num_frames: int) -> Tensor:
        """[2 num_frames - 1, width] fp32, of the offsets num_frames - 1 down to 1 - num_frames."""
        offsets = torch.arange(num_frames - 1, -num_frames, -1, device=self.inverse_frequency.device)
        angles = torch.outer(offsets.float(), self.inverse_frequency)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotate(x_BHTK: Tensor, cos_TJ: Tensor, sin_TJ: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) of a query or key by its position's angle; keeps the dtype of x. J is K / 2."""
    return _Rotation.apply(x_BHTK, cos_TJ.to(x_BHTK.dtype), sin_TJ.to(x_BHTK.dtype))


class _Rotation(torch.autograd.Function):
    """Passes over a query or key once each way, where autograd would keep and copy every intermediate result."""

    @staticmethod
    def forward(context, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # pyright: ignore
        context.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        cos, sin = context.saved_tensors
        return _turn(gradient, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    output = torch.empty_like(x)
    (first, second), (turned_first, turned_second) = x.chunk(2, dim=-1), output.chunk(2, dim=-1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin)
    return output


def attend_to_valid(valid_BS: Tensor) -> Tensor:
    """[B, 1, 1, S], True at keys that may be attended to: valid frames, and of an utterance without any the first,
    silent one, as a row without a key would be undefined."""
    attend_BS = valid_BS.clone()
    attend_BS[:, 0] = True
    return attend_BS[:, None, None, :]


def split_heads(packed_BTC: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 H K] to query, key and value [B, H, T, K]."""
    return _SplitHeads.apply(packed_BTC, heads)


class _SplitHeads(torch.autograd.Function):
    """The parts are views; their gradients are written side by side once."""

    @staticmethod
    def forward(context, packed: Tensor, heads: int):  # pyright: ignore
        batch, frames, width = packed.shape
        return packed.view(batch, frames, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(context, *gradients: Tensor):  # pyright: ignore
        batch, heads, frames, head_width = gradients[0].shape
        packed = gradients[0].new_empty(batch, frames, 3, heads, head_width)
        for part, gradient in zip(packed.permute(2, 0, 3, 1, 4), gradients, strict=True):
            part.copy_(gradient)
        return packed.view(batch, frames, -1), None


class SelfAttention(nn.Module):
    """Self-attention over the valid frames of each utterance, or, `causal`, over each position and those before it."""

    splits_utterances = True

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        attend: Tensor | None = None,
        past: LayerCache | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Frames [B, T, D] to [B, T, D], or, with `packing`, [N, D] to [N, D].

        `attend`, [B, 1, 1, S] or [B or 1, 1, T, S], is True at keys that may be attended to, None for all; causal
        attention takes none. `past` holds the keys and values before these frames; `positions` are those of all keys.
        """
        packed = self.query_key_value(x)
        if packing and self._by_utterance(packing, attend, past, x.device):
            return self.output(self._mix_by_utterance(packed, positions, packing))
        query, key, value = split_heads(packing.pad(packed) if packing else packed, self.heads)
        if past is not None:
            key, value = past.extend(key, value)
        mixed = self._mix(query, key, value, positions, attend).transpose(1, 2).flatten(2)
        return self.output(packing.pack(mixed) if packing else mixed)

    def _by_utterance(
        self, packing: Packing, attend: Tensor | None, past: LayerCache | None, device: torch.device
    ) -> bool:
        """Whether to mix one utterance after the other: fewer pairs of frames, but calls that GPUs would wait for."""
        only_padding = attend is not None and attend.shape[2] == 1
        return self.splits_utterances and device.type == "cpu" and only_padding and past is None and packing.uneven

    def _mix_by_utterance(self, packed_NC: Tensor, positions: Positions, packing: Packing) -> Tensor:
        """[N, 3 D] to the mixed values [N, D]."""
        query, key, value = split_heads(packed_NC[None], self.heads)
        if positions is not None:
            cos_NJ, sin_NJ = (angles_SJ[packing.columns] for angles_SJ in positions)
            query, key = rotate(query, cos_NJ, sin_NJ), rotate(key, cos_NJ, sin_NJ)
        lengths = [length for length in packing.lengths if length]
        return attend_within(query[0], key[0], value[0], lengths).transpose(0, 1).flatten(1)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions, attend: Tensor | None) -> Tensor:
        if positions is not None:
            cos_SJ, sin_SJ = positions
            # Queries are the last of the frames that are attended to.
            query = rotate(query, cos_SJ[-query.shape[2] :], sin_SJ[-query.shape[2] :])
            key = rotate(key, cos_SJ, sin_SJ)
        return functional.scaled_dot_product_attention(query, key, value, attend, is_causal=self.causal)


class RelativeSelfAttention(SelfAttention):
    """Scores ((q + u) k + (q + v) W r) / sqrt(K): u and v weigh content and offset r for themselves."""

    splits_utterances = False  # offsets would have to be encoded for every length

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(width))
        self.position_bias = nn.Parameter(torch.zeros(width))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions, attend: Tensor | None) -> Tensor:
        assert isinstance(positions, Tensor)
        _, heads, frames, head_width = query.shape
        # Offsets below 1 - T are beyond the last key of every query.
        used_PD = positions[: key.shape[2] + frames - 1].to(self.position.weight.dtype)
        position_HKP = self.position(used_PD).view(-1, heads, head_width).permute(1, 2, 0)
        content, offset = (
            query + bias.view(heads, 1, head_width).to(query.dtype) for bias in (self.content_bias, self.position_bias)
        )
        scores = _shift(offset @ position_HKP, key.shape[2]) / math.sqrt(head_width)
        if attend is not None:
            scores = scores.masked_fill(~attend, -math.inf)
        return functional.scaled_dot_product_attention(content, key, value, scores)


def _shift(scores_BHTP: Tensor, num_keys: int) -> Tensor:
    """Scores by offset to scores by key: row t, key s from column T - 1 - t + s (Dai et al., 2019, appendix B).

    With one more column in front, a row is one longer than it is read, so each row is read one column further left.
    """
    batch, heads, frames, width = scores_BHTP.shape
    padded = functional.pad(scores_BHTP, (1, 0)).view(batch, heads, -1)
    return padded[..., frames:].view(batch, heads, frames, width)[..., :num_keys]
