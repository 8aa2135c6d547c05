"""Which settings a sweep runs: a grid of values, or points that are drawn.

What is drawn follows from the recipe's seed, the number of the point and the key alone, so that a sweep which goes on
has the same points.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.errors import ConfigError

DISTRIBUTION = re.compile(r"(uniform|log|int)\(([^,()]+),([^,()]+)\)")
OPENING = "[{("
CLOSING = "]})"
MAX_POINTS = 1000
MAX_NAME_CHARACTERS = 80

# Values, as texts of YAML, by the keys of a recipe.
Point = dict[str, str]


@dataclass(frozen=True)
class Distribution:
    """`uniform` and `log` draw numbers from `low` to `high`, of which `log` draws the logarithm evenly; `int` draws
    whole numbers, both ends included."""

    kind: str
    low: float
    high: float

    def draw(self, generator: random.Random) -> str:
        if self.kind == "int":
            return str(generator.randint(int(self.low), int(self.high)))
        if self.kind == "log":
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        # More digits would say nothing, and stand in every name.
        return f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """A setting, and its values or what they are drawn from."""

    key: str
    values: tuple[str, ...]
    distribution: Distribution | None = None


def read_axis(text: str) -> Axis:
    """Read `KEY=A,B,C` or `KEY=uniform(A, B)`; ConfigError for anything else."""
    key, equals, given = text.partition("=")
    key = key.strip()
    given = given.strip()
    if not equals or not key or not given:
        raise ConfigError(
            f"--over {text[:200]!r} is not of the form KEY=A,B,C, such as "
            "stages.student.distill.hidden.weight=0.1,0.3,1."
        )
    drawn = DISTRIBUTION.fullmatch(given)
    if drawn:
        return Axis(key, (), _read_distribution(text, drawn))
    values = _split(given)
    if "" in values:
        raise ConfigError(f"--over {text[:200]!r} has an empty value. Give null for nothing.")
    if len(set(values)) < len(values):
        raise ConfigError(f"--over {text[:200]!r} has a value twice, and would run the same twice. Give it once.")
    return Axis(key, tuple(values))


def _read_distribution(text: str, drawn: re.Match[str]) -> Distribution:
    kind = drawn[1]
    try:
        low = float(drawn[2])
        high = float(drawn[3])
    except ValueError:
        raise ConfigError(f"--over {text[:200]!r} needs two numbers, such as {kind}(1, 10).") from None
    is_sound = math.isfinite(low) and math.isfinite(high) and low < high
    if kind == "log" and low <= 0:
        is_sound = False
    if kind == "int" and (low != int(low) or high != int(high)):
        is_sound = False
    if not is_sound:
        raise ConfigError(
            f"--over {text[:200]!r} cannot be drawn from: give the lower number first, for log numbers above 0, for "
            "int whole ones."
        )
    return Distribution(kind, low, high)


def _split(text: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes: a value may be a list."""
    values = [""]
    depth = 0
    quote = ""
    for character in text:
        if quote:
            if character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def make_points(axes: Sequence[Axis], num_random: int | None, seed: int) -> list[Point]:
    """Return the points of a grid, or `num_random` points that are drawn; ConfigError where there are none or too
    many."""
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--over names a setting twice: {', '.join(keys)}. Give all its values in one.")
    drawn = [axis.key for axis in axes if axis.distribution]
    if num_random is None and drawn:
        raise ConfigError(
            f"--over {drawn[0]} is to be drawn, and --random does not say how many points. Add --random N."
        )
    if num_random is not None and not 1 <= num_random <= MAX_POINTS:
        raise ConfigError(f"--random is {num_random}. Give the number of points, 1 to {MAX_POINTS}.")
    if drawn:
        assert num_random is not None
        return [_draw_point(axes, seed, number) for number in range(num_random)]

    num_points = math.prod(len(axis.values) for axis in axes)
    if num_random is None and num_points > MAX_POINTS:
        raise ConfigError(f"The grid has {num_points} points, more than {MAX_POINTS}. Draw some: --random N.")
    if num_random is not None and num_random > num_points:
        raise ConfigError(f"--random is {num_random}, and the grid has {num_points} points. Leave --random out.")
    if num_random is None:
        places = list(range(num_points))
    else:
        # Each point once; the first ones of a longer draw are those of a shorter one.
        places = random.Random(f"{seed} grid").sample(range(num_points), num_points)[:num_random]  # noqa: S311
    return [_grid_point(axes, place) for place in places]


def _grid_point(axes: Sequence[Axis], place: int) -> Point:
    """The point at a place of the grid, of which the last axis changes fastest."""
    point: Point = {}
    for axis in reversed(axes):
        place, number = divmod(place, len(axis.values))
        point[axis.key] = axis.values[number]
    return {axis.key: point[axis.key] for axis in axes}


def _draw_point(axes: Sequence[Axis], seed: int, number: int) -> Point:
    point = {}
    for axis in axes:
        # No secret follows from it.
        generator = random.Random(f"{seed} {number} {axis.key}")  # noqa: S311
        if axis.distribution:
            point[axis.key] = axis.distribution.draw(generator)
        else:
            point[axis.key] = generator.choice(axis.values)
    return point


def name_points(points: Sequence[Point]) -> list[str]:
    """Return a name of a folder for each point: what its settings are called, as shortly as they differ, and its
    values."""
    short_keys = _short_keys(list(points[0]))
    names = []
    for number, point in enumerate(points):
        parts = [f"{short_keys[key]}-{value}" for key, value in point.items()]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("-.")
        # A value may be a long list, or differ from another in marks alone.
        if len(name) > MAX_NAME_CHARACTERS or name in names or not name:
            name = f"{name[: MAX_NAME_CHARACTERS - 8].strip('-.') or 'point'}-p{number + 1:03d}"
        names.append(name)
    return names


def _short_keys(keys: list[str]) -> dict[str, str]:
    """The last words of each key, as many as tell all of them apart."""
    longest = max(key.count(".") + 1 for key in keys)
    for num_words in itertools.count(1):
        short = {key: "-".join(key.split(".")[-num_words:]) for key in keys}
        if len(set(short.values())) == len(keys) or num_words == longest:
            return short
    raise AssertionError("a count has no end")
