"""What a student learns from its teachers: the terms of distillation, their weights and when each counts.

Terms whose weight is 0 cost nothing. What must hold between a student and its teachers is in `teachers`.
"""

import functools
import logging
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field, model_validator

from launcher.run_folder import is_folder

logger = logging.getLogger(__name__)

# Fractions such as 0.1 + 0.2 and 0.3 differ by a rounding error, and are meant to be equal.
FRACTION_TOLERANCE = 1e-9

# What `input` of a teacher was called once: records and recipes of earlier runs have it.
FORMER_INPUT_KEY = "hears"

TermName: TypeAlias = Literal["hidden", "ctc", "decoder", "sequence", "units"]


class WeightSchedule(BaseModel, frozen=True, extra="forbid"):
    """The course of a term's weight over a stage, in fractions of its steps: up from 0, level, down to 0."""

    warmup: float = Field(default=0.0, ge=0, le=1, description="fraction over which the weight rises linearly from 0")
    until: float | None = Field(default=None, gt=0, le=1, description="the term's own end; none: distill.until")
    decay: float = Field(
        default=0.0, ge=0, le=1, description="fraction before the end over which the weight falls linearly to 0"
    )

    def factor(self, progress: float, until: float) -> float:
        """What the weight is multiplied by when `progress` of the steps are done; `until` serves where none is set."""
        end = self.end(until)
        if progress >= end:
            return 0.0

        factor = 1.0
        if self.warmup:
            factor = min(factor, progress / self.warmup)
        if self.decay:
            factor = min(factor, (end - progress) / self.decay)
        return factor

    def end(self, until: float) -> float:
        """The fraction of the steps at which the term ends; `until` serves where none is set."""
        if self.until is None:
            return until
        return self.until


class TermConfig(BaseModel, frozen=True, extra="forbid"):
    """What all terms have."""

    weight: float = Field(default=0.0, description="weight of the term in the loss; 0 switches it off")
    schedule: WeightSchedule = Field(
        default_factory=WeightSchedule, description="how the weight changes over the stage"
    )

    @property
    def active(self) -> bool:
        """Whether the term counts at all."""
        return self.weight > 0


class HiddenDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student's hidden states follow the teacher's, layer by layer."""

    weight: float = Field(
        default=1.0, ge=0, le=1e6, description="weight of the squared distance in the loss; 0 switches it off"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="layers to compare, counted from 0; none: the last layer of each group of the student",
    )
    # As in DistilHuBERT, whose loss is L1 and cosine.
    cosine: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of -log sigmoid(cosine similarity) beside the distance"
    )
    projection: bool = Field(
        default=False,
        description="a linear layer per compared layer, trained and then left behind, brings the student's state to "
        "the teacher's width",
    )
    resample: bool = Field(
        default=False,
        description="where the frame rates differ, the teacher's states are interpolated at the times of the "
        "student's frames",
    )

    @property
    def active(self) -> bool:
        return self.weight > 0 or self.cosine > 0


class CtcDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student's CTC posteriors follow the teacher's, frame by frame."""

    weight: float = Field(
        default=0.5, ge=0, le=1e6, description="weight of the divergence in the loss; 0 switches it off"
    )
    temperature: float = Field(
        default=1.0, ge=0.01, le=1000, description="both logits are divided by it before the softmax"
    )
    # Frames whose best token is blank are most of all frames, and would dominate the divergence at full weight.
    blank_weight: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="weight of frames where the teacher's best token is blank; others weigh 1",
    )


class DecoderDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student's attention decoder follows the teacher's, token by token, teacher-forced."""

    weight: float = Field(
        default=0.5, ge=0, le=1e6, description="weight of the divergence in the loss; 0 switches it off"
    )
    temperature: float = Field(
        default=1.0, ge=0.01, le=1000, description="both logits are divided by it before the softmax"
    )


class SequenceDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student learns the teacher's hypotheses as if they were transcripts (Kim and Rush, 2016)."""

    weight: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of the loss on the teacher's hypotheses; 0 switches it off"
    )
    search: Literal["greedy", "prefix_beam"] = Field(
        default="greedy", description="how the hypotheses are found in the teacher's CTC output"
    )
    texts: int = Field(
        default=1, ge=1, le=10_000, description="how many of an utterance's best hypotheses; greedy finds one"
    )
    beam: int = Field(default=8, ge=1, le=10_000, description="prefixes that the prefix beam search keeps")
    temperature: float = Field(
        default=1.0,
        ge=0.01,
        le=1000,
        description="the hypotheses' log probabilities are divided by it before they become weights",
    )

    @model_validator(mode="after")
    def _search_finds_so_many(self) -> "SequenceDistillConfig":
        # Greedy search follows one path, prefix beam search `beam` hypotheses.
        most = 1
        if self.search == "prefix_beam":
            most = self.beam
        if self.texts > most:
            raise ValueError(
                f"texts is {self.texts}, and the search {self.search} finds {most} at most; lower texts, or choose "
                "search: prefix_beam with a beam as wide"
            )
        return self


class UnitsDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student predicts which cluster of states the teacher's state falls into, frame by frame."""

    weight: float = Field(default=0.0, ge=0, le=1e6, description="weight of the cross-entropy; 0 switches it off")
    count: int = Field(default=100, ge=2, le=65_536, description="clusters")
    teacher_layer: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="layer of the teacher whose states are clustered, from 0; none: its last",
    )
    layer: int | None = Field(
        default=None, ge=0, le=1000, description="layer of the student that predicts them, from 0; none: its last"
    )
    # Makes sense with a teacher that is not masked itself (`input: clean`).
    masked_only: bool = Field(default=False, description="only frames that a time mask hides from the student count")
    # The frames are drawn on the first process while the others wait; it keeps no more than these in memory.
    frames: int = Field(
        default=20_000, ge=2, le=10**8, description="frames of the teacher that the clusters are made from"
    )
    steps: int = Field(
        default=20, ge=1, le=10**6, description="first steps of the stage that these frames are drawn from"
    )
    iterations: int = Field(default=20, ge=1, le=10**6, description="rounds of k-means")

    @model_validator(mode="after")
    def _enough_frames(self) -> "UnitsDistillConfig":
        if self.frames < self.count:
            raise ValueError(
                f"{self.count} units cannot be made from {self.frames} frames; raise frames or lower count"
            )
        return self


class CacheConfig(BaseModel, frozen=True, extra="forbid"):
    """Whether a stage reads its teachers' outputs where `chorus cache-teacher` has stored them, instead of running
    the teachers.

    No part of what a stage is: up to fp16 and `top_tokens` the losses are those of the teacher itself.
    """

    use: Literal["auto", "make", "require", "never"] = Field(
        default="auto",
        description="auto: where there is a cache of the same teacher, shards and settings; make: make it first where "
        "there is none; require: end where there is none; never: run the teachers at every step",
    )
    # For shards behind a URL, or where nothing may be written.
    folder: Path | None = Field(
        default=None, description="folder of the caches; none: beside the shards of the train split"
    )
    # With `r` left of 1, a divergence moves by at most r (log(V - k) + the range of log q over what is not kept).
    top_tokens: int = Field(
        default=32,
        ge=1,
        le=10**6,
        description="tokens that are kept of each posterior, the likeliest; the others share what is left of 1 equally",
    )

    @property
    def required(self) -> bool:
        """Whether the stage trains with caches alone."""
        return self.use in ("make", "require")


class DistillConfig(BaseModel, frozen=True, extra="forbid"):
    """What the student learns from the teacher, besides the recognition objective."""

    hidden: HiddenDistillConfig = Field(
        default_factory=HiddenDistillConfig, description="hidden states of encoder layers, divided by frames x layers"
    )
    ctc: CtcDistillConfig = Field(
        default_factory=CtcDistillConfig, description="CTC posteriors of every frame, divided by tokens"
    )
    decoder: DecoderDistillConfig = Field(
        default_factory=DecoderDistillConfig, description="the decoder's next tokens, divided by tokens and ends"
    )
    sequence: SequenceDistillConfig = Field(
        default_factory=SequenceDistillConfig, description="the teacher's hypotheses as transcripts, divided by tokens"
    )
    units: UnitsDistillConfig = Field(
        default_factory=UnitsDistillConfig, description="clusters of the teacher's states, divided by frames"
    )
    cache: CacheConfig = Field(default_factory=CacheConfig, description="whether teachers' stored outputs are read")
    # DeepSpeed-MoE's Mixture-of-Students stops at about 70 % of the steps: distilling to the end may cost accuracy.
    until: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="fraction of the stage's steps with distillation; the objective alone after that",
    )

    @model_validator(mode="after")
    def _schedules_fit(self) -> "DistillConfig":
        for name, term in self.terms().items():
            schedule = term.schedule
            end = schedule.end(self.until)
            if schedule.warmup + schedule.decay > end + FRACTION_TOLERANCE:
                raise ValueError(
                    f"{name}.schedule rises for {schedule.warmup:g} of the steps and falls for {schedule.decay:g}, "
                    f"which is more than the {end:g} that the term lasts; shorten warmup or decay, or set "
                    f"{name}.schedule.until"
                )
        return self

    def terms(self) -> dict[str, TermConfig]:
        """The terms by their keys, whatever they weigh."""
        return {name: term for name, term in self if isinstance(term, TermConfig)}

    def active(self) -> frozenset[str]:
        """The terms that count at some time."""
        return frozenset(name for name, term in self.terms().items() if term.active)

    def factors(self, progress: float) -> dict[str, float]:
        """What the weight of each active term is multiplied by; terms that do not count now are missing."""
        factors = {}
        for name, term in self.terms().items():
            factor = term.schedule.factor(progress, self.until)
            if term.active and factor > 0:
                factors[name] = factor
        return factors


class TeacherConfig(BaseModel, frozen=True, extra="forbid"):
    """One teacher of a stage, and what it teaches."""

    model: str = Field(description="an earlier training stage, or (with a slash) the folder of a model")
    name: str = Field(
        default="",
        pattern=r"^([a-z][a-z0-9_-]*)?$",
        description="its name in metrics; empty: the stage's, or teacher-N",
    )
    weight: float = Field(
        default=1.0, ge=1e-6, le=1e6, description="how much it counts beside the other teachers of a term"
    )
    terms: tuple[TermName, ...] | None = Field(
        default=None, description="the terms of distill that it teaches; none: all that weigh something"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="its layers, from 0, that the student's distill.hidden.layers are compared to, in the same order; "
        "none: those of the same numbers",
    )
    input: Literal["augmented", "clean", "waveform"] | None = Field(
        default=None,
        description="augmented: the student's features; clean: the same before they are masked; waveform: the speech "
        "itself, through its own front-end; none: augmented, but waveform where the model is not one of Chorus",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_former_key(cls, values: Any) -> Any:
        # Recipes in the folders of earlier runs have it, and these must stay readable.
        if not isinstance(values, dict) or FORMER_INPUT_KEY not in values:
            return values
        if "input" in values:
            raise ValueError(f"{FORMER_INPUT_KEY} is the former name of input, and both are given; keep input")
        _warn_of_former_key()
        renamed = dict(values)
        renamed["input"] = renamed.pop(FORMER_INPUT_KEY)
        return renamed

    @property
    def is_folder(self) -> bool:
        """Whether the teacher is a folder, not a stage of this recipe."""
        return is_folder(self.model)


# Cached, so that a process says it once, however many teachers and recipes have the key.
@functools.cache
def _warn_of_former_key() -> None:
    logger.warning("The key %s of a teacher is now called input; it is read as that.", FORMER_INPUT_KEY)
