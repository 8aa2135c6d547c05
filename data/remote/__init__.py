"""Files of shards behind URLs: stores and their errors, retries, a cache on this host."""
