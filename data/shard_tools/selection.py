"""Which utterances of a set go into a new one: a sample of a given size, or those that conditions describe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from data.errors import DataError
from data.files import MAX_JSON_BYTES, parse_json, read_bounded
from data.seeds import derive_seed
from data.shard_tools.findings import KINDS
from data.shard_tools.rewriting import Candidate


class SampleConfig(BaseModel, frozen=True, extra="forbid"):
    """How much of each split is drawn; a smaller sample of the same seed lies in a larger one."""

    utterances: int | None = Field(default=None, ge=1, description="utterances of each split")
    hours: float | None = Field(default=None, gt=0, le=1e9, description="hours of each split, at most")
    share: float | None = Field(default=None, gt=0, le=1, description="share of the utterances of each split")
    seed: int = Field(default=1, description="decides which are drawn")

    @model_validator(mode="after")
    def _one_size(self) -> "SampleConfig":
        given = [name for name in ("utterances", "hours", "share") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{len(given)} of utterances, hours and share are given: give one of them")
        return self

    def choose(self, candidates: Sequence[Candidate]) -> list[bool]:
        """The utterances with the lowest draws, until there are enough: those of a smaller sample come first."""
        draws: list[tuple[int, int]] = []
        for position, candidate in enumerate(candidates):
            # By its key, so that the same utterances are drawn of a set that was resharded.
            draw = derive_seed(self.seed, "sample", candidate.split, candidate.key)
            draws.append((draw, position))
        most = len(candidates)
        if self.utterances is not None:
            most = self.utterances
        if self.share is not None:
            most = round(self.share * len(candidates))
            # Of a small split one at least.
            most = max(1, most)
        chosen = [False] * len(candidates)
        seconds = 0.0
        for _, position in sorted(draws)[:most]:
            seconds += candidates[position].seconds
            if self.hours is not None and seconds > 3600 * self.hours:
                break
            chosen[position] = True
        return chosen


class FilterConfig(BaseModel, frozen=True, extra="forbid"):
    """What an utterance must be to go into the new set; all conditions that are given must hold."""

    min_seconds: float | None = Field(default=None, ge=0, description="it lasts so long at least")
    max_seconds: float | None = Field(default=None, gt=0, description="it lasts so long at most")
    min_rate: float | None = Field(default=None, ge=0, description="it has so many characters per second at least")
    max_rate: float | None = Field(default=None, gt=0, description="it has so many characters per second at most")
    languages: tuple[str, ...] = Field(default=(), description="its language is one of these")
    speakers: tuple[str, ...] = Field(default=(), description="its speaker is one of these")
    without_speakers: tuple[str, ...] = Field(default=(), description="its speaker is none of these")
    text: str = Field(default="", description="this regular expression matches in its text")
    without_text: str = Field(default="", description="this regular expression does not match in its text")
    keys: str = Field(default="", description="this file names it: a line with KEY or SPLIT/KEY, or a report")
    without_keys: str = Field(default="", description="this file does not name it, such as verify's --json report")
    kinds: tuple[str, ...] = Field(default=(), description="of reports, only what was found of these kinds counts")

    @model_validator(mode="after")
    def _something_is_asked(self) -> "FilterConfig":
        if self == FilterConfig.model_construct():
            raise ValueError("no condition is given; to copy a set as it is, reshard it")
        for quantity in ("seconds", "rate"):
            lowest = getattr(self, f"min_{quantity}")
            highest = getattr(self, f"max_{quantity}")
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(
                    f"min_{quantity} is {lowest:g} and max_{quantity} {highest:g}, between which nothing lies: lower "
                    "the first or raise the second"
                )
        for name in ("text", "without_text"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from None
        unknown = sorted(set(self.kinds) - KINDS.keys())
        if unknown:
            raise ValueError(f"kinds has {', '.join(unknown)}, and there are {', '.join(KINDS)}")
        if self.kinds and not (self.keys or self.without_keys):
            raise ValueError("kinds is given, and no report: name one in without_keys or keys")
        return self


class Filter:
    """The conditions of a `FilterConfig`. DataError when a file of keys cannot be read."""

    def __init__(self, config: FilterConfig):
        self.config = config
        self._text = re.compile(config.text)
        self._without_text = re.compile(config.without_text) if config.without_text else None
        self._keys = read_keys(Path(config.keys), config.kinds) if config.keys else None
        self._without_keys: set[str] = set()
        if config.without_keys:
            self._without_keys = read_keys(Path(config.without_keys), config.kinds)

    def choose(self, candidates: Sequence[Candidate]) -> list[bool]:
        """Which of the utterances meet all conditions."""
        return [self._takes(candidate) for candidate in candidates]

    def _takes(self, candidate: Candidate) -> bool:
        config = self.config
        # Never by zero, whatever a set says of an utterance.
        rate = len(candidate.text) / max(candidate.seconds, 1e-9)
        bounds = (
            (candidate.seconds, config.min_seconds, config.max_seconds),
            (rate, config.min_rate, config.max_rate),
        )
        for value, lowest, highest in bounds:
            if lowest is not None and value < lowest:
                return False
            if highest is not None and value > highest:
                return False
        if config.languages and candidate.language not in config.languages:
            return False
        if config.speakers and candidate.speaker not in config.speakers:
            return False
        if candidate.speaker in config.without_speakers:
            return False
        if not self._text.search(candidate.text):
            return False
        if self._without_text is not None and self._without_text.search(candidate.text):
            return False
        names = {candidate.key, f"{candidate.split}/{candidate.key}"}
        if self._keys is not None and not names & self._keys:
            return False
        return not names & self._without_keys


def read_keys(path: Path, kinds: Sequence[str] = ()) -> set[str]:
    """The utterances that a file names, as KEY or SPLIT/KEY: one a line, or what `verify --json` found (of some kinds).

    DataError when it cannot be read.
    """
    try:
        content = read_bounded(path, MAX_JSON_BYTES).decode("utf-8")
        if content.lstrip().startswith("{"):
            return _keys_of_report(parse_json(content), kinds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of keys ({error!r:.200}): give a text file with a key a line, or the "
            "report of `chorus shards verify --json`."
        ) from error
    if kinds:
        raise DataError(f"{path} is a list of keys, and kinds choose from a report of `chorus shards verify --json`.")
    keys = {line.strip() for line in content.splitlines()}
    # Blank lines name nothing.
    keys.discard("")
    return keys


def _keys_of_report(report: Mapping, kinds: Sequence[str]) -> set[str]:
    keys: set[str] = set()
    for finding in report["findings"]:
        if kinds and finding["kind"] not in kinds:
            continue
        for item in finding["items"]:
            for key in item["keys"]:
                # What two splits share is named with the split already.
                if "/" not in key:
                    key = f"{finding['split']}/{key}"
                keys.add(key)
    return keys
