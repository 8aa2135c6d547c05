"""Splits of corpora that have none: by a hash of the text, so that a sentence is never in two of them."""

import hashlib


def split_by_hash(words: str, dev_fraction: float, test_fraction: float) -> str:
    """The split of a sentence, of which `words` are what makes it one (`data.text.transcripts.split_key`)."""
    # A hash and not a generator: a row stays in its split when others are added.
    # Of a list in another encoding, whose rows are rejected once they have a split, bytes are lone surrogates.
    digest = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    position = int.from_bytes(digest) / 2**64
    if position < test_fraction:
        return "test"
    if position < test_fraction + dev_fraction:
        return "dev"
    return "train"
