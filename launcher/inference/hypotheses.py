"""The hypotheses that an evaluation keeps, a line of JSON for each utterance, and the errors in each."""

from collections.abc import Callable, Iterable
from pathlib import Path

import jiwer

from data.errors import DataError
from data.files import read_lines
from data.shards.index import MAX_ROW_BYTES, parse_texts
from launcher.errors import ConfigError
from launcher.inference.error_counts import count_errors

Align = Callable[[str, str], jiwer.WordOutput | jiwer.CharacterOutput]


def read_hypotheses(path: Path) -> list[dict[str, str]]:
    """The hypotheses of an evaluation, by key.

    ConfigError where it was made without keeping them, DataError where the file is torn.
    """
    rows = []
    try:
        for line in read_lines(path, MAX_ROW_BYTES):
            rows.append(parse_texts(line, ("key", "reference", "hypothesis")))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {path}, which holds the hypothesis of each utterance. Delete "
            f"{path.parents[1] / 'evaluation.json'} and run the same command as before: it evaluates again."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"Line {len(rows) + 1} of {path} cannot be read: {error}. Delete {path.parents[1] / 'evaluation.json'} and "
            "run the same command as before: it evaluates again."
        ) from None
    # In one order for all seeds and models: a bootstrap replicate draws the same utterances of each.
    return sorted(rows, key=lambda row: row["key"])


def count_all_errors(rows: Iterable[dict[str, str]], align: Align) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The errors of each hypothesis, and the length of each reference."""
    errors = []
    lengths = []
    for row in rows:
        num_errors, length = count_errors(align(row["reference"], row["hypothesis"]))
        errors.append(num_errors)
        lengths.append(length)
    return tuple(errors), tuple(lengths)
