"""From logits to tokens."""

from model.search.greedy import Hypothesis, greedy

__all__ = ["Hypothesis", "greedy"]
