"""Multi-head self-attention with rotary positions (Su et al., RoFormer, 2021, equation 34).

Shapes: B batch, H heads, T frames, D model width, K head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class RotaryPositions(nn.Module):
    """Angles of rotary positions, computed once per length and shared by all layers of an encoder."""

    inverse_frequency: Tensor

    def __init__(self, head_width: int, base: float = 10_000.0):
        super().__init__()
        inverse = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        self.register_buffer("inverse_frequency", inverse, persistent=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [num_frames, head_width], fp32."""
        positions = torch.arange(num_frames, device=self.inverse_frequency.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inverse_frequency).repeat(1, 2)
        return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) of a query or key by its position's angle; keeps the dtype of x."""
    first, second = x_BHTK.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BHTK * cos_TK.to(x_BHTK.dtype) + turned * sin_TK.to(x_BHTK.dtype)


class SelfAttention(nn.Module):
    """Self-attention over the valid frames of each utterance, or, `causal`, over each position and those before it."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, positions: tuple[Tensor, Tensor], attend_B11T: Tensor | None = None) -> Tensor:
        """Frames [B, T, D] to [B, T, D]. `attend_B11T` is True at keys that may be attended to, None for all;
        causal attention takes none."""
        batch, frames, width = x_BTD.shape
        packed = self.query_key_value(x_BTD).view(batch, frames, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(query, *positions), rotate(key, *positions)
        mixed = functional.scaled_dot_product_attention(query, key, value, attend_B11T, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).reshape(batch, frames, width))
