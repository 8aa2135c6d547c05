"""Options that many commands have, so that they are called and explained alike."""

import argparse


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """--set KEY=VALUE; `what` says which settings, and gives an example."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"{what}; may be given again")


def add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="DIR", help="what a stage of kind adapt changed of MODEL: RUN/STAGE, or its folder adapter"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_listening(parser: argparse.ArgumentParser, port: int) -> None:
    """Where a server listens, and who may ask it."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=port, help=f"port, 0 for any that is free (default: {port})")
    parser.add_argument(
        "--token-file", metavar="F", help="file of mode 0600 with the token of requests (default: CHORUS_SERVE_TOKEN)"
    )
