"""The corpus section of a recipe: a corpus to prepare, shards that are there, or a mixture of several of both."""

import functools
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, create_model, model_validator

from data.corpora import CorpusConfig
from data.sampling.mixture import MixedCorpus, Mixture
from data.shards.index import is_url

# It becomes the name of a folder.
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
# Shares are rounded to 2 ** -24. Far smaller ones vanish in floating point, where nothing can be divided by them.
MIN_WEIGHT = 1e-9


class ShardsCorpus(BaseModel, frozen=True, extra="forbid"):
    """A corpus that was prepared before: a folder with one folder of shards per split."""

    name: Literal["shards"] = Field(default="shards", description="the corpus is read as shards, not prepared")
    shards: str = Field(description="folder written by `chorus prepare`, or its URL")


class MixtureEntry(BaseModel, frozen=True, extra="forbid"):
    """What a corpus of a mixture has beside its own settings."""

    label: str = Field(
        pattern=LABEL, description="its name in plans, results and files; without one, that of its folder or its kind"
    )
    weight: float | None = Field(
        default=None, ge=MIN_WEIGHT, le=1e6, description="by which its share is multiplied; 1 where it has none"
    )
    from_step: int | None = Field(
        default=None,
        ge=0,
        le=10**12,
        description="the step at which it joins every training; the tokenizer and the statistics of the features are "
        "those of the corpora without one",
    )

    @property
    def corpus(self) -> Any:
        """The corpus alone."""
        # `_entry` puts it behind this class.
        config = type(self).__bases__[1]
        assert issubclass(config, BaseModel)
        return config.model_validate(self.model_dump(exclude=set(MixtureEntry.model_fields), exclude_unset=True))


def _entry(config: type[BaseModel]) -> type[MixtureEntry]:
    """The entry of a mixture that has the settings of a corpus as its own, so that a recipe nests no deeper."""
    entry = create_model(f"Mixed{config.__name__}", __base__=(MixtureEntry, config))
    assert issubclass(entry, MixtureEntry)
    return entry


if TYPE_CHECKING:
    AnyEntry = MixtureEntry
else:
    # The first argument of an Annotated union is the union.
    _configs = (*get_args(get_args(CorpusConfig)[0]), ShardsCorpus)
    _entries = functools.reduce(operator.or_, map(_entry, _configs))
    AnyEntry = Annotated[_entries, Field(discriminator="name")]


class MixtureCorpus(BaseModel, frozen=True, extra="forbid"):
    """Several corpora, each with a share of the audio that a training reads."""

    name: Literal["mixture"] = Field(default="mixture", description="several corpora are read")
    mix: tuple[AnyEntry, ...] = Field(min_length=1, max_length=1000, description="the corpora")
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="a share is weight * hours ** temperature: 1 by size, 0 by the weights alone; without it 0 where "
        "corpora have weights, else 1",
    )
    over: Literal["corpora", "languages"] = Field(
        default="corpora", description="what the temperature levels: corpora, or the languages of their utterances"
    )

    @model_validator(mode="after")
    def _check_entries(self) -> "MixtureCorpus":
        labels = [entry.label for entry in self.mix]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"{labels.count(label)} corpora of the mixture are called {label}. Give each a label of its own, "
                    "such as label: other"
                )
        if all(entry.from_step is not None for entry in self.mix):
            raise ValueError(
                "every corpus of the mixture has a from_step; one without it must be there from the start, to which "
                "the tokenizer and the statistics of the features belong"
            )
        return self

    @property
    def initial(self) -> tuple[MixtureEntry, ...]:
        """The corpora that tokenizer and statistics are made of."""
        return tuple(entry for entry in self.mix if entry.from_step is None)

    @property
    def resolved_temperature(self) -> float:
        """The temperature, whether or not the recipe gives one."""
        if self.temperature is not None:
            return self.temperature
        if self.over == "corpora" and any(entry.weight is not None for entry in self.mix):
            return 0.0
        return 1.0

    @property
    def mixture(self) -> Mixture:
        """What the sampler goes by."""
        return self._mixture(self.mix)

    @property
    def initial_mixture(self) -> Mixture:
        """The same of the corpora that tokenizer and statistics are made of."""
        return self._mixture(self.initial)

    def _mixture(self, entries: tuple[MixtureEntry, ...]) -> Mixture:
        corpora = []
        for entry in entries:
            corpora.append(MixedCorpus(entry.label, entry.weight or 1.0, entry.from_step or 0))
        return Mixture(tuple(corpora), self.resolved_temperature, self.over)

    def settings_of(self, steps: int) -> dict[str, Any] | None:
        """What a training of so many steps depends on; None where it reads one corpus as without a mixture."""
        corpora = {}
        for corpus in self.mixture.corpora:
            if corpus.from_step < steps:
                corpora[corpus.name] = {"weight": corpus.weight, "from_step": corpus.from_step}
        if len(corpora) == 1 and self.over == "corpora":
            return None
        return {"temperature": self.resolved_temperature, "over": self.over, "corpora": corpora}


def reads_the_same(before: dict[str, Any] | None, after: dict[str, Any] | None, steps: int) -> bool:
    """Whether two settings of mixtures, of `settings_of`, read the same in the first `steps` steps."""
    return _until(before, steps) == _until(after, steps)


def _until(settings: dict[str, Any] | None, steps: int) -> Any:
    if settings is None:
        return None
    corpora = {}
    for label, corpus in settings["corpora"].items():
        if corpus["from_step"] < steps:
            corpora[label] = corpus
    # A corpus that is alone is read as without a mixture, whatever its weight.
    if len(corpora) == 1 and settings["over"] == "corpora":
        return None
    return settings | {"corpora": corpora}


def complete_corpus(values: dict[str, Any]) -> None:
    """Give the plain values of a corpus section the names that it may do without: shards are told by their key alone,
    and so is a mixture, whose corpora are called after their folders."""
    corpus = values.get("corpus")
    if not isinstance(corpus, dict):
        return
    if "shards" in corpus:
        corpus.setdefault("name", "shards")
    if "mix" in corpus:
        corpus.setdefault("name", "mixture")
        entries = corpus["mix"]
        if not isinstance(entries, list):
            return
        for entry in entries:
            if isinstance(entry, dict):
                _complete_entry(entry)


def _complete_entry(entry: dict[str, Any]) -> None:
    label = entry.get("name")
    if "shards" in entry:
        entry.setdefault("name", "shards")
        label = str(entry["shards"]).rstrip("/").rpartition("/")[2]
    if label:
        # What no label may hold, at its beginning or elsewhere.
        label = re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9._-]", "-", str(label)))
    if label:
        entry.setdefault("label", label)


def corpus_paths(corpus: Any, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield (dotted key, path) of every file or folder that a corpus names."""
    if isinstance(corpus, MixtureCorpus):
        for entry in corpus.mix:
            yield from corpus_paths(entry, f"{prefix}.mix.{entry.label}")
        return
    for key, value in corpus:
        if isinstance(value, Path):
            yield f"{prefix}.{key}", value


def with_absolute_corpus(corpus: Any) -> Any:
    """The same corpus section, its paths taken from the current folder and made absolute."""
    if isinstance(corpus, MixtureCorpus):
        entries = tuple(map(with_absolute_corpus, corpus.mix))
        return corpus.model_copy(update={"mix": entries})
    changes: dict[str, Any] = {}
    for key, path in corpus_paths(corpus, ""):
        changes[key.removeprefix(".")] = path.expanduser().absolute()
    if isinstance(corpus, ShardsCorpus) and not is_url(corpus.shards):
        changes["shards"] = str(Path(corpus.shards).expanduser().absolute())
    return corpus.model_copy(update=changes)
