"""What every corpus is: a configuration, and a function from it to utterances."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from data.audio import Utterance
from data.rejected_rows import RejectedRows


class BaseCorpusConfig(BaseModel, frozen=True, extra="forbid"):
    """The fields that all corpora share; each adds a `name` and its own."""

    shard_seconds: float = Field(default=600.0, gt=0, le=1e6, description="audio per shard in seconds")

    @property
    def text_rules(self) -> dict[str, Any] | None:
        """The rules under which texts are normalised, as splits record them; None where texts stay as they are."""
        return None


class Selection(NamedTuple):
    """The utterances of all splits, and the rows that cannot be used, each with its reason; together, all rows."""

    utterances: list[Utterance]
    rejected: RejectedRows


class Corpus(NamedTuple):
    """A source of utterances: `select(config, seed)` depends on its arguments and the corpus files alone."""

    config: type[BaseCorpusConfig]
    select: Callable[[Any, int], Selection]
