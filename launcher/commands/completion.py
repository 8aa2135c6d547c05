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
    # The parser imports the modules of commands when they are called, not the other way round.
    from launcher.cli import build_parser

    # As for `prepare`, so that its corpora are completed too.
    parser = build_parser(["prepare"])
    print(shtab.complete(parser, shell=options.shell))
    return 0
