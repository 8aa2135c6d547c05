"""What becomes of micro-batches that do not fit into memory: tried before the first step, split where one is met.

`trial` runs the worst micro-batches once before a stage trains. `shortage` takes an out-of-memory in training: it names
the utterances, decides into how many parts micro-batches of that size go from then on, and remembers it in the stage's
folder. `splitting` makes the parts.
"""
