"""Adapters: small trained modules beside the frozen weights of a block, one set for each layer or for each block.

With a set for each layer, layers that share a block become different again at the price of a few low-rank matrices.
"""

from model.adapters.config import AdaptersConfig
from model.adapters.modules import AdapterSite, BlockAdapters, Bottleneck, LowRank

__all__ = ["AdapterSite", "AdaptersConfig", "BlockAdapters", "Bottleneck", "LowRank"]
