"""A page about a set of shards: what is in each split, and what a run would make of it."""
