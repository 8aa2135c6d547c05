"""The position-wise feed-forward layer of a conformer block."""

from torch import Tensor, nn

from model.adapters import BlockAdapters
from model.layers.silu_linear import SiluLinear


class FeedForward(nn.Module):
    """Linear, SiLU, linear: width -> hidden -> width."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = SiluLinear(hidden, width)

    def forward(
        self,
        x: Tensor,
        adapters: BlockAdapters | None = None,
        place: str = "",
    ) -> Tensor:
        """[..., width] to [..., width]; `place` is the layer's name in its block, by which adapters are found."""
        if adapters is None:
            return self.contract(self.expand(x))
        hidden = adapters.add(f"{place}_expand", self.expand(x), x)
        return adapters.add(f"{place}_contract", self.contract(hidden), hidden)
