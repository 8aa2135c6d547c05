"""From logits to tokens."""

from model.search.greedy import GreedySearch, greedy
from model.search.hypothesis import Hypothesis
from model.search.prefix_beam import PrefixBeamSearch, prefix_beam

__all__ = ["GreedySearch", "Hypothesis", "PrefixBeamSearch", "greedy", "prefix_beam"]
