"""The one error that this package raises for what its user can mend."""


class DataError(Exception):
    """Recordings, transcripts or shards that cannot be used.

    The message is one paragraph: what happened, where (file, line, key, shard), what was seen, what to do.
    """
