"""Splits as shards: WebDataset tars with an index beside them, written once and read by position.

`writer` makes them, and `journal` and `partial_folder` hold what it had finished when it was interrupted; `index` and
`reader` find and read an utterance, here or at a URL; `sidecars` are arrays beside the shards; `joined_split` is
several splits as one.
"""
