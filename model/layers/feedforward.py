"""The position-wise feed-forward layer of a conformer block."""

from torch import Tensor, nn

from model.layers.silu_linear import SiluLinear


class FeedForward(nn.Module):
    """Linear, SiLU, linear: width -> hidden -> width."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = SiluLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.expand(x))
