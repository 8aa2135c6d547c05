"""Everything between a user's recordings and the batches of a training step.

Corpora are read and written as shards (`manifests`, `corpora`, `shards`); a sampler says which utterances each
step uses (`sampler`); the rest turns them into batches. Nothing here knows a model or a process group.
"""
