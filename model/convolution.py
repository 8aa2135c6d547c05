"""The convolution module of a conformer block (Gulati et al., 2020, figure 2).

Shapes: B batch, T frames, D model width.
"""

from torch import Tensor, nn
from torch.nn import functional


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time, norm, SiLU, pointwise. The norm is handed in: it belongs to the layer."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.gated = nn.Linear(width, 2 * width)
        # A two-dimensional convolution of height 1: frames [B, T, D] are its channels-last input without a copy, and
        # its kernel is several times faster on CPUs than the one-dimensional one.
        self.depthwise = nn.Conv2d(width, width, (1, kernel_size), padding=(0, kernel_size // 2), groups=width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor | None, norm: nn.Module) -> Tensor:
        """Frames [B, T, D] to [B, T, D]; padded frames (valid_BT1 False) count as silence for their neighbours."""
        x_BTD = functional.glu(self.gated(x_BTD), dim=-1)
        if valid_BT1 is not None:
            x_BTD = x_BTD * valid_BT1
        x_BTD = self.depthwise(x_BTD.unsqueeze(1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).squeeze(1)
        return self.output(functional.silu(norm(x_BTD)))
