"""`chorus completion`: the script that completes commands and options in a shell."""

import argparse

from launcher.errors import ConfigError


def completion(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise ConfigError(
            "Completion is written by the package shtab, which is not installed; pip install 'chorus-asr[completion]'."
        ) from None
    # As for `prepare`, so that its corpora are completed too.
    print(shtab.complete(options.build_parser(["prepare"]), shell=options.shell))
    return 0
