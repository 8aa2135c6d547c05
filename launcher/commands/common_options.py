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
