"""Runs whose folder is in an object store: `--run-dir s3://bucket/run`.

A run works in a folder of its host; `stored_run` fills that from the store and holds the lease that keeps a second
launcher out (`lease`), `uploading` brings it to the store while the run goes on, in the order of `mirror`, and
`inventory` is the store's word on what is whole there. `reading` fetches for commands that read.
`docs/object-stores.md` has what a user sees.
"""


def is_run_url(name: object) -> bool:
    """Whether a run, or a part of one, is named by a URL and not by a path. Here, since stores take long to import."""
    return "://" in str(name)
