"""Everything between a user's recordings and the batches of a training step.

Corpora are read (`manifests`, `corpora`, `containers`) and written as `shards`, here or in a store (`remote`);
`shard_tools` judge and rewrite them; `sampling` says which utterances each step uses, `loader` reads them ahead,
`augmentation` and `features` make them what a model hears, and `text` makes transcripts tokens. Nothing here knows a
model or a process group.
"""
