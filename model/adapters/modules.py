"""The adapters of one use of a block.

y = W x + b + scale U D x (LoRA, Hu et al., 2022, equation 3), and y = F(x) + scale U silu(D x + d) beside a
feed-forward layer F (the parallel adapter of He et al., 2022, table 1). U starts at zero: before any training the model
is the one without adapters. Both can be merged: the product is added to W, and the bottleneck makes F wider.

Shapes: N packed valid frames, D model width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from model.adapters.config import AdaptersConfig


@dataclass(frozen=True)
class AdapterSite:
    """A linear layer that an adapter may stand beside; `activated`: it applies SiLU to its input first."""

    linear: nn.Linear
    activated: bool


class LowRank(nn.Module):
    """scale U D x, or scale U D silu(x) beside a layer that activates its input."""

    def __init__(self, site: AdapterSite, rank: int, scale: float):
        super().__init__()
        self.activated = site.activated
        self.scale = scale
        self.down = nn.Linear(site.linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, site.linear.out_features, bias=False)
        # Inputs are normed, so that what is inside begins with variance 1.
        nn.init.normal_(self.down.weight, std=site.linear.in_features**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.activated:
            x = functional.silu(x)
        return self.scale * self.up(self.down(x))

    def product(self) -> Tensor:
        """What is added to the weight of the linear layer, [out, in]."""
        return self.scale * (self.up.weight @ self.down.weight)


class Bottleneck(nn.Module):
    """scale U silu(D x + d): a narrow feed-forward layer of the model's width."""

    def __init__(self, width: int, hidden: int, scale: float):
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width, bias=False)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(functional.silu(self.down(x)))


class BlockAdapters(nn.Module):
    """The adapters of one use of a block, each under the name of the site that its output is added to."""

    def __init__(
        self,
        config: AdaptersConfig,
        width: int,
        sites: Mapping[str, AdapterSite],
        feedforwards: Iterable[str],
    ):
        """Low-rank adapters beside the linear layers of `sites`, or bottlenecks beside the `feedforwards`."""
        super().__init__()
        if config.kind == "bottleneck":
            for name in feedforwards:
                self.add_module(name, Bottleneck(width, config.rank, config.scale))
            return
        for name, site in sites.items():
            self.add_module(name, LowRank(site, config.rank, config.scale))

    def add(
        self,
        site: str,
        output: Tensor,
        x: Tensor,
        weights_N1: Tensor | None = None,
    ) -> Tensor:
        """The output of a site and of its adapter on the site's input; a site without an adapter as it is.

        `weights_N1` are what a frame's experts weigh together: an adapter beside experts counts as a part of each.
        """
        adapter = self._modules.get(site)
        if adapter is None:
            return output
        added = adapter(x)
        if weights_N1 is not None:
            added = added * weights_N1.to(added.dtype)
        return output + added
