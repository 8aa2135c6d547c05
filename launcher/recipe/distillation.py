"""What a student learns from its teachers: the terms of distillation, their weights and when each counts."""

from pydantic import BaseModel, Field, model_validator


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
    """What all terms have beside their weight."""

    schedule: WeightSchedule = Field(
        default_factory=WeightSchedule, description="how the weight changes over the stage"
    )


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


class DistillConfig(BaseModel, frozen=True, extra="forbid"):
    """What the student learns from the teacher, besides the recognition objective."""

    hidden: HiddenDistillConfig = Field(default_factory=HiddenDistillConfig)
    ctc: CtcDistillConfig = Field(default_factory=CtcDistillConfig)
    decoder: DecoderDistillConfig = Field(default_factory=DecoderDistillConfig)
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
        """The terms by their keys."""
        return {name: term for name, term in self if isinstance(term, TermConfig)}

    def factors(self, progress: float) -> dict[str, float]:
        """What each term's weight is multiplied by; terms that do not count now are left out."""
        factors = {name: term.schedule.factor(progress, self.until) for name, term in self.terms().items()}
        return {name: factor for name, factor in factors.items() if factor > 0}
