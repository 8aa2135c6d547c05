"""From logits to tokens."""

from model.search.fusion import Fusion
from model.search.greedy import GreedySearch, greedy
from model.search.hotwords import Hotwords
from model.search.hypothesis import Hypothesis
from model.search.ngram import NgramModel, TokenLanguageModel, WordLanguageModel, read_arpa
from model.search.prefix_beam import PrefixBeamSearch, prefix_beam

__all__ = [
    "Fusion",
    "GreedySearch",
    "Hotwords",
    "Hypothesis",
    "NgramModel",
    "PrefixBeamSearch",
    "TokenLanguageModel",
    "WordLanguageModel",
    "greedy",
    "prefix_beam",
    "read_arpa",
]
