"""From logits to tokens."""

from model.search.alignment import align, with_times
from model.search.attention_beam import AttentionOptions, attention_beam
from model.search.fusion import Fusion
from model.search.greedy import GreedySearch, greedy
from model.search.hotwords import Hotwords
from model.search.hypothesis import Hypothesis
from model.search.joint import CtcPrefixScores, joint
from model.search.kenlm_model import KenlmModel, read_language_model
from model.search.ngram import LanguageModel, NgramModel, TokenLanguageModel, WordLanguageModel, read_arpa
from model.search.prefix_beam import PrefixBeamSearch, prefix_beam
from model.search.rescoring import rescore
from model.search.transducer import transducer_greedy

__all__ = [
    "AttentionOptions",
    "CtcPrefixScores",
    "Fusion",
    "GreedySearch",
    "Hotwords",
    "Hypothesis",
    "KenlmModel",
    "LanguageModel",
    "NgramModel",
    "PrefixBeamSearch",
    "TokenLanguageModel",
    "WordLanguageModel",
    "align",
    "attention_beam",
    "greedy",
    "joint",
    "prefix_beam",
    "read_arpa",
    "read_language_model",
    "rescore",
    "transducer_greedy",
    "with_times",
]
