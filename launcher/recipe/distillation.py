"""What a student learns from its teachers: the terms of distillation, their weights and when each counts."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, Field, model_validator

from launcher.run_folder import is_folder

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
        end = until if self.until is None else self.until
        if progress >= end:
            return 0.0
        rise = progress / self.warmup if self.warmup else 1.0
        fall = (end - progress) / self.decay if self.decay else 1.0
        return min(rise, fall, 1.0)


class TermConfig(BaseModel, frozen=True, extra="forbid"):
    """What all terms have."""

    weight: float = 0.0
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
        default=1.0, ge=0, description="weight of the squared distance in the loss; 0 switches it off"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="layers to compare, counted from 0; none: the last layer of each group of the student",
    )
    cosine: float = Field(
        default=0.0, ge=0, description="weight of -log sigmoid(cosine similarity) beside the distance"
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

    weight: float = Field(default=0.5, ge=0, description="weight of the divergence in the loss; 0 switches it off")
    temperature: float = Field(default=1.0, gt=0, description="both logits are divided by it before the softmax")
    blank_weight: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="weight of frames where the teacher's best token is blank; others weigh 1",
    )


class DecoderDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student's attention decoder follows the teacher's, token by token, teacher-forced."""

    weight: float = Field(default=0.5, ge=0, description="weight of the divergence in the loss; 0 switches it off")
    temperature: float = Field(default=1.0, gt=0, description="both logits are divided by it before the softmax")


class SequenceDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student learns the texts that the teacher finds, as if they were transcripts (Kim and Rush, 2016)."""

    weight: float = Field(default=0.0, ge=0, description="weight of the loss on the teacher's texts; 0 switches it off")
    search: Literal["greedy", "prefix_beam"] = Field(
        default="greedy", description="how the texts are found in the teacher's CTC output"
    )
    texts: int = Field(default=1, ge=1, description="how many of the best texts of an utterance; greedy finds one")
    beam: int = Field(default=8, ge=1, description="prefixes that the prefix beam search keeps")
    temperature: float = Field(
        default=1.0, gt=0, description="log probabilities of the texts are divided by it before they become weights"
    )

    @model_validator(mode="after")
    def _search_finds_so_many(self) -> "SequenceDistillConfig":
        most = self.beam if self.search == "prefix_beam" else 1
        if self.texts > most:
            raise ValueError(
                f"texts is {self.texts}, and the search {self.search} finds {most} at most; lower texts, or choose "
                "search: prefix_beam with a beam as wide"
            )
        return self


class UnitsDistillConfig(TermConfig, frozen=True, extra="forbid"):
    """The student predicts which cluster of states the teacher's state falls into, frame by frame."""

    weight: float = Field(default=0.0, ge=0, description="weight of the cross-entropy; 0 switches it off")
    count: int = Field(default=100, ge=2, description="clusters")
    teacher_layer: int | None = Field(
        default=None, ge=0, description="layer of the teacher whose states are clustered, from 0; none: its last"
    )
    layer: int | None = Field(
        default=None, ge=0, description="layer of the student that predicts them, from 0; none: its last"
    )
    masked_only: bool = Field(default=False, description="only frames that a time mask hides from the student count")
    frames: int = Field(default=20_000, ge=2, description="frames of the teacher that the clusters are made from")
    steps: int = Field(default=20, ge=1, description="first steps of the stage that these frames are drawn from")
    iterations: int = Field(default=20, ge=1, description="rounds of k-means")

    @model_validator(mode="after")
    def _enough_frames(self) -> "UnitsDistillConfig":
        if self.frames < self.count:
            raise ValueError(
                f"{self.count} units cannot be made from {self.frames} frames; raise frames or lower count"
            )
        return self


class CacheConfig(BaseModel, frozen=True, extra="forbid"):
    """Whether a stage reads what its teachers give, where `chorus cache-teacher` has stored it, instead of asking
    them."""

    use: Literal["auto", "make", "require", "never"] = Field(
        default="auto",
        description="auto: where there is a cache of the same teacher, shards and settings; make: make it first where "
        "there is none; require: end where there is none; never: let the teachers hear every step",
    )
    folder: Path | None = Field(
        default=None, description="folder of the caches; none: beside the shards of the train split"
    )
    top_tokens: int = Field(
        default=32,
        ge=1,
        description="tokens that are kept of each posterior, the likeliest; the others share what is left of 1 equally",
    )

    @property
    def required(self) -> bool:
        """Whether the stage trains with caches alone."""
        return self.use in ("make", "require")


class DistillConfig(BaseModel, frozen=True, extra="forbid"):
    """What the student learns from the teacher, besides the recognition objective."""

    hidden: HiddenDistillConfig = Field(default_factory=HiddenDistillConfig)
    ctc: CtcDistillConfig = Field(default_factory=CtcDistillConfig)
    decoder: DecoderDistillConfig = Field(default_factory=DecoderDistillConfig)
    sequence: SequenceDistillConfig = Field(default_factory=SequenceDistillConfig)
    units: UnitsDistillConfig = Field(default_factory=UnitsDistillConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
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
            end = self.until if schedule.until is None else schedule.until
            if schedule.warmup + schedule.decay > end + 1e-9:
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
        """What the weight of each active term is multiplied by; terms that do not count now are left out."""
        terms = {name: term for name, term in self.terms().items() if term.active}
        factors = {name: term.schedule.factor(progress, self.until) for name, term in terms.items()}
        return {name: factor for name, factor in factors.items() if factor > 0}


class TeacherConfig(BaseModel, frozen=True, extra="forbid"):
    """One teacher of a stage, and what it teaches."""

    model: str = Field(description="an earlier training stage, or (with a slash) the folder of a model")
    name: str = Field(
        default="",
        pattern=r"^([a-z][a-z0-9_-]*)?$",
        description="its name in metrics; empty: the stage's, or teacher-N",
    )
    weight: float = Field(default=1.0, gt=0, description="how much it counts beside the other teachers of a term")
    terms: tuple[TermName, ...] | None = Field(
        default=None, description="the terms of distill that it teaches; none: all that weigh something"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="its layers, from 0, that the student's distill.hidden.layers are compared to, in the same order; "
        "none: those of the same numbers",
    )
    hears: Literal["augmented", "clean", "waveform"] | None = Field(
        default=None,
        description="augmented: the student's features; clean: the same before they are masked; waveform: the speech "
        "itself, through its own front-end; none: augmented, but waveform where the model is not one of Chorus",
    )

    @property
    def is_folder(self) -> bool:
        return is_folder(self.model)
