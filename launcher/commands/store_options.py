"""Options of commands that work on a run, for one whose folder is in an object store."""

import argparse
from pathlib import Path

from launcher.remote_run import is_run_url

UPLOAD_TIMEOUT_S = 600.0


def add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="with --run-dir s3://BUCKET/RUN: folder on this host to work in (default: one in ~/.cache/chorus)",
    )
    parser.add_argument(
        "--upload-timeout-s",
        type=float,
        default=UPLOAD_TIMEOUT_S,
        metavar="S",
        help=f"with a store: longest wait for uploads at the end, in s (default: {UPLOAD_TIMEOUT_S:g})",
    )


def run_path(options: argparse.Namespace, recipe_name: str) -> Path:
    """The folder on this host that a run works in. ConfigError for a URL that no run is kept at."""
    if options.run_dir is not None and is_run_url(options.run_dir):
        # fsspec takes long to import.
        from launcher.remote_run.local_folders import work_folder

        # Commands that do not work on the run have no such option.
        return work_folder(options.run_dir, getattr(options, "work_dir", None))
    return Path(options.run_dir or f"runs/{recipe_name}").expanduser()
