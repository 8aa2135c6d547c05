"""How an evaluation or a transcription searches: one of six kinds, each with its own keys.

Scores are natural logarithms throughout, so that weights and bonuses of different sources can be added.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from data.errors import DataError
from launcher.errors import ConfigError
from launcher.recipe.validation_messages import validate
from model.layers.chunk_mask import ChunkMask
from model.recognizer import RecognizerConfig


class LanguageModelConfig(BaseModel, frozen=True, extra="forbid"):
    """An n-gram model whose log probabilities are added to the recogniser's."""

    path: Path | None = Field(
        default=None, description="ARPA file, gzipped if its name ends in .gz, or KenLM binary; none: see order"
    )
    order: int | None = Field(
        default=None,
        ge=1,
        le=20,
        description="instead of path: n-grams up to this length, which a run counts in its training transcripts",
    )
    # A model of tokens must have been made with the tokenizer of the recogniser.
    unit: Literal["word", "token"] = Field(
        default="word", description="word: it knows words, which count when they are complete; token: the tokenizer's"
    )
    # 0.2 suits a model of the training transcripts; one of much more text deserves more.
    weight: float = Field(default=0.2, ge=0, le=1e6, description="weight of its natural-log probabilities")

    @model_validator(mode="after")
    def _one_source(self) -> "LanguageModelConfig":
        if (self.path is None) == (self.order is None):
            raise ValueError(
                "a language model is read from a path, or made of the run's training transcripts with an order; give "
                "one of the two"
            )
        return self


class HotwordsConfig(BaseModel, frozen=True, extra="forbid"):
    """Phrases that are expected."""

    phrases: tuple[str, ...] = Field(default=(), description="as they stand in transcripts")
    path: Path | None = Field(default=None, description="text file with more of them, one a line")
    # What is given while a match goes on is taken back when it breaks.
    bonus: float = Field(default=1.5, ge=-1e6, le=1e6, description="natural-log score for each token of a phrase")

    @model_validator(mode="after")
    def _not_empty(self) -> "HotwordsConfig":
        if not self.phrases and self.path is None:
            raise ValueError("there are no hotwords; give phrases, a path, or leave hotwords out")
        return self


class ChunkConfig(BaseModel, frozen=True, extra="forbid"):
    """How far the encoder's attention sees: a frame's own chunk and some before it, as while audio still arrives."""

    frames: int = Field(ge=1, le=10**6, description="encoder frames of a chunk")
    left_chunks: int | None = Field(
        default=None, ge=0, le=10**6, description="chunks before a frame's own; none: all of them"
    )

    @property
    def chunk(self) -> ChunkMask:
        """The attention mask that these sizes stand for."""
        return ChunkMask(self.frames, self.left_chunks)


class _AnySearch(BaseModel, frozen=True, extra="forbid"):
    """What all searches have in common."""

    chunk: ChunkConfig | None = Field(
        default=None, description="what the encoder's attention sees; none: the whole recording"
    )


class GreedyConfig(_AnySearch, frozen=True, extra="forbid"):
    """The best CTC token of every frame. Costs next to nothing."""

    kind: Literal["greedy"] = Field(default="greedy", description="no beam, no language model")


class TransducerSearchConfig(_AnySearch, frozen=True, extra="forbid"):
    """The transducer's best tokens of every frame, one after the other until a blank."""

    kind: Literal["transducer"] = Field(description="greedy, with the transducer")
    # Without a limit a model that never gives a blank would not leave a frame.
    symbols_per_frame: int = Field(default=5, ge=1, le=1000, description="most tokens of a frame")


class BeamConfig(_AnySearch, frozen=True, extra="forbid"):
    """What all beam searches have in common."""

    beam: int = Field(default=10, ge=1, le=10_000, description="hypotheses that are followed at once, per utterance")
    candidates: int = Field(default=20, ge=1, le=10**6, description="tokens that each hypothesis is tried with next")
    n_best: int = Field(default=1, ge=1, le=10_000, description="hypotheses that are given, best first; at most `beam`")
    # Every token costs probability: more weight of a language model needs more of it.
    length_bonus: float = Field(default=0.0, ge=-1e6, le=1e6, description="natural-log score for every token")
    language_model: LanguageModelConfig | None = Field(default=None, description="n-gram model whose scores are added")
    hotwords: HotwordsConfig | None = Field(default=None, description="phrases that are expected")

    @model_validator(mode="after")
    def _within_the_beam(self) -> "BeamConfig":
        if self.n_best > self.beam:
            raise ValueError(f"n_best is {self.n_best} and beam {self.beam}: no more texts come out than are followed")
        return self


class PrefixBeamConfig(BeamConfig, frozen=True, extra="forbid"):
    """CTC prefix beam search: the most probable text, not the text of the most probable path."""

    kind: Literal["prefix_beam"] = Field(description="beam search in the CTC output alone")


class AttentionBeamConfig(BeamConfig, frozen=True, extra="forbid"):
    """Beam search with the attention decoder."""

    kind: Literal["attention_beam"] = Field(description="beam search with the decoder alone")
    # A sum of log probabilities falls with every token, so that undivided scores prefer short texts.
    length_power: float = Field(
        default=0.6, ge=0, le=10, description="a score is divided by (tokens + 1) to this power; 0 prefers short texts"
    )


class RescoringConfig(BeamConfig, frozen=True, extra="forbid"):
    """The decoder chooses among the `beam` hypotheses of CTC prefix beam search."""

    kind: Literal["rescoring"] = Field(description="CTC finds hypotheses, the decoder chooses")
    ctc_weight: float = Field(
        default=0.5, ge=0, le=1e6, description="weight of the prefix beam's score; the decoders' is 1"
    )
    # U2++ (Wu et al., 2021); the decoder that reads backwards has to be trained, see objective.reverse_weight.
    reverse_weight: float = Field(
        default=0.0, ge=0, le=1, description="share of the decoder that reads backwards in the decoders' score"
    )


class JointConfig(AttentionBeamConfig, frozen=True, extra="forbid"):
    """Beam search with the attention decoder and CTC's prefix probabilities together."""

    kind: Literal["joint"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        description="beam search with decoder and CTC"
    )
    ctc_weight: float = Field(default=0.3, ge=0, le=1, description="share of CTC; the rest is the decoder's")


SearchConfig = Annotated[
    GreedyConfig | TransducerSearchConfig | PrefixBeamConfig | AttentionBeamConfig | RescoringConfig | JointConfig,
    Field(discriminator="kind"),
]


class SearchSection(BaseModel, frozen=True, extra="forbid"):
    """A search under its key, so that errors name its keys as in a recipe: `search.beam`."""

    search: SearchConfig = Field(description="how texts are found in a model's outputs")


def read_search(values: dict[str, Any], source: str) -> SearchConfig:
    """A search from plain values; ConfigError, which begins with `source`, says what is wrong with them."""
    return validate(SearchSection, {"search": values}, source).search


def search_files(search: SearchConfig) -> Iterator[tuple[str, Path]]:
    """Yield (dotted key, path) of the files that a search reads."""
    if isinstance(search, GreedyConfig | TransducerSearchConfig):
        return
    if search.language_model and search.language_model.path:
        yield "language_model.path", search.language_model.path
    if search.hotwords and search.hotwords.path:
        yield "hotwords.path", search.hotwords.path


def counts_transcripts(search: SearchConfig) -> bool:
    """Whether the language model of a search is made of the run's training transcripts."""
    if isinstance(search, GreedyConfig | TransducerSearchConfig):
        return False
    return search.language_model is not None and search.language_model.order is not None


def with_absolute_files(search: SearchConfig) -> SearchConfig:
    """The same search, its paths taken from the current folder and made absolute."""
    if isinstance(search, GreedyConfig | TransducerSearchConfig):
        return search
    if search.language_model and search.language_model.path:
        path = search.language_model.path.expanduser().absolute()
        language_model = search.language_model.model_copy(update={"path": path})
        search = search.model_copy(update={"language_model": language_model})
    if search.hotwords and search.hotwords.path:
        path = search.hotwords.path.expanduser().absolute()
        hotwords = search.hotwords.model_copy(update={"path": path})
        search = search.model_copy(update={"hotwords": hotwords})
    return search


def check_search_files(search: SearchConfig, where: str) -> None:
    """Refuse (DataError) a search whose files are not there; `where` is the key of the search, as in a recipe."""
    for key, path in search_files(search):
        if not path.is_file():
            raise DataError(
                f"{where}.{key} is {path}, and there is no such file. Name one that is there; a relative path counts "
                "from the folder that chorus is started in."
            )


def check_search_model(search: SearchConfig, model: RecognizerConfig, name: str) -> None:
    """Refuse (ConfigError) a search that asks the model of that name for a decoder, a transducer or chunks it lacks."""
    # Such convolutions need frames of the next chunk, which has not arrived yet.
    if search.chunk and not model.encoder.causal_convolution:
        raise ConfigError(
            f"The search's chunk is of {search.chunk.frames} frames, and the convolutions of {name} see later ones "
            "(model.encoder.causal_convolution is false). Leave chunk out, or train a model with causal_convolution "
            "and chunks."
        )

    if isinstance(search, TransducerSearchConfig) and model.transducer is None:
        raise ConfigError(
            f"The search transducer needs a transducer, and {name} has none (model.transducer). Search with greedy "
            "or prefix_beam, or train a model with a transducer."
        )

    # Joint search is one of the attention beams too; greedy and prefix beam search need no more than CTC.
    if isinstance(search, AttentionBeamConfig | RescoringConfig):
        if model.decoder is None:
            raise ConfigError(
                f"The search {search.kind} needs an attention decoder, and {name} has none (model.decoder). Search "
                "with greedy or prefix_beam, or train a model with a decoder."
            )
        reads_backwards = model.decoder.right_to_left_layers > 0
        if isinstance(search, RescoringConfig) and search.reverse_weight and not reads_backwards:
            raise ConfigError(
                f"The search's reverse_weight is {search.reverse_weight:g}, and {name} has no decoder that reads "
                "backwards (model.decoder.right_to_left_layers is 0). Set reverse_weight to 0, or train a model with "
                "such a decoder."
            )
