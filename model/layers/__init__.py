"""The layers of a block, and how padded batches are packed for them."""
