"""Which utterances every lane reads at every step: a function of the index, the seed and the step.

`sampler` is that of one corpus, `mixture` that of several in given shares; `token_counts` and `languages` are what they
need to know of the texts; `statistics` measures what they do.
"""
