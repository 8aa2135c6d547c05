"""The position-wise feed-forward layer of a conformer block."""

from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Linear, SiLU, linear: width -> hidden -> width."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(functional.silu(self.expand(x)))
