"""What commands on other hosts print: an answer, which is one line of JSON among those of a login, or errors."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from data.files import parse_json

PREFIX = "chorus answers: "
# Of what ssh, srun and a shell print on standard error, the end says what went wrong.
ERROR_CHARACTERS = 300


def print_answer(value: Any) -> None:
    """Print a value for the process that asked for it over ssh."""
    # On a line of its own, also after a prompt or a banner without an end.
    print(f"\n{PREFIX}{json.dumps(value)}", flush=True)


def read_answer(lines: Iterable[str]) -> Any:
    """Read lines up to the next answer and return its value; ValueError where they end without one.

    A message of the day, a shell's start-up files or a library may print lines of their own before it.
    """
    for answer in read_answers(lines):
        return answer
    raise ValueError("it printed no answer")


def last_words(errors: str) -> str:
    """The end of what a command printed on standard error, on one line."""
    return " ".join(errors.split())[-ERROR_CHARACTERS:]


def read_answers(lines: Iterable[str]) -> Iterator[Any]:
    """Yield the values of all answers in what one or more commands printed."""
    for line in lines:
        if line.startswith(PREFIX):
            yield parse_json(line.removeprefix(PREFIX))


def read_number(lines: Iterable[str]) -> int:
    """The sum of the numbers in all answers; ValueError where there is none, or one that is no number."""
    numbers = list(read_answers(lines))
    if not numbers or not all(type(number) is int for number in numbers):
        raise ValueError("it printed no number as its answer")
    return sum(numbers)
