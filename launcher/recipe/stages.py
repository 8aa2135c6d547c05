"""The stages of a recipe: what each kind trains or evaluates, its keys, their units and defaults.

Stages refuse values that contradict each other within one stage. What must hold between stages is in `checks`, what a
student learns from its teachers in `distillation`.
"""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, model_validator

from data.augmentation import AugmentConfig
from data.masking import MaskingConfig
from data.sampling.sampler import BatchesConfig
from launcher.devices import DEVICE_PATTERN
from launcher.recipe.adaptation import AdaptConfig
from launcher.recipe.averaging import AverageConfig
from launcher.recipe.distillation import DistillConfig, TeacherConfig
from launcher.recipe.search import GreedyConfig, SearchConfig
from model.losses import ExpertsObjectiveConfig, ObjectiveConfig
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import RecognizerConfig
from model.upcycle import check_layers_to_copy


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW and its learning-rate schedule."""

    peak_learning_rate: float = Field(
        default=1e-3, ge=1e-12, le=100, description="highest learning rate, reached after the warm-up"
    )
    warmup_steps: int = Field(default=100, ge=0, le=10**12, description="steps of linear rise from 0 to the peak")
    schedule: Literal["cosine", "tri_stage", "inverse_square_root"] = Field(
        default="cosine",
        description="after the warm-up: cosine decay to the end; tri_stage: held, then exponential decay "
        "over the last half; inverse_square_root: peak * sqrt(warmup_steps / step), as in the Transformer",
    )
    final_ratio: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="learning rate of the last step over the peak (cosine and tri_stage)",
    )
    weight_decay: float = Field(
        default=0.01, ge=0, le=1000, description="decoupled decay of matrices; norms and biases have none"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="decay of the first and second moment")
    clip_norm: float = Field(default=1.0, ge=1e-9, le=1e12, description="largest global norm of the gradient")

    @model_validator(mode="after")
    def _betas_and_warmup_fit(self) -> "OptimizerConfig":
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas are {list(self.betas)}; each must be at least 0 and below 1")

        # inverse_square_root is 0 everywhere without a warm-up, and the first of three stages is one.
        if self.schedule != "cosine" and self.warmup_steps == 0:
            raise ValueError(f"the schedule {self.schedule} needs a warm-up; set warmup_steps to 1 or more")
        return self


class CheckpointConfig(BaseModel, frozen=True, extra="forbid"):
    """When a stage saves, and which of its checkpoints stay."""

    every_steps: int = Field(
        default=200, ge=1, le=10**12, description="steps between checkpoints; there is always one at the end"
    )
    keep_last: int = Field(default=2, ge=1, le=10**6, description="how many of the newest checkpoints stay on the disk")
    # Of equally good ones the later stays.
    keep_best: int = Field(
        default=1,
        ge=1,
        le=10**6,
        description="how many of those with the lowest validation/cer stay; counts checkpoints of steps that "
        "validate_every divides, because only their weights were validated",
    )
    keep_every: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="checkpoints of steps that it divides stay for good; none: not by their step",
    )


class RecoveryConfig(BaseModel, frozen=True, extra="forbid"):
    """What becomes of steps whose loss or gradient is infinite or undefined. Such an update is never applied."""

    # More skips in a row than this say that the weights themselves are the cause, not the batches.
    max_skips: int = Field(
        default=5, ge=0, le=10**6, description="updates that are skipped in a row before the weights are rolled back"
    )
    # The step count goes on after a rollback, and with it the data and the learning rate.
    max_rollbacks: int = Field(
        default=2,
        ge=0,
        le=10**6,
        description="times that the weights are rolled back to an earlier checkpoint, and the steps since then passed "
        "over, before the stage ends with exit code 6",
    )


class Stage(BaseModel, frozen=True, extra="forbid"):
    """What all stages have in common."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="name of the stage and of its folder")


class TrainingStage(Stage, frozen=True, extra="forbid"):
    """What all stages that train have in common."""

    # None of these three nor the name is part of what a stage is: a change reruns nothing.
    about: str = Field(default="", description="what the stage is, in a line, for comparisons")
    compare_to: tuple[str, ...] = Field(
        default=(), description="training stages that comparisons set it against; none: the one before it"
    )
    repeats: str | None = Field(
        default=None, description="what the stage is called without its seed; set where seeds made stages of one"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        description="of weights, order of the data, augmentation, instead of the recipe's",
    )
    model: RecognizerConfig | MaskedPredictorConfig = Field(description="what is trained")
    objective: ExpertsObjectiveConfig = Field(description="weights of the terms of the loss")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW and its learning rate")
    steps: int = Field(ge=1, le=10**12, description="optimizer updates")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="when the stage saves and what it keeps"
    )
    average: AverageConfig | None = Field(
        default=None, description="the finished model is an average of weights; none: those of the last step"
    )
    freeze: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=1000,
        description="parts that stay as they start: names of parameters or of parts of the model, with * and ?, such "
        "as encoder.subsampling or encoder.blocks.0.*",
    )
    recovery: RecoveryConfig = Field(
        default_factory=RecoveryConfig, description="what becomes of losses and gradients that are not finite"
    )
    validate_every: int = Field(
        default=200, ge=1, le=10**12, description="steps between validations; there is always one at the end"
    )
    log_every: int = Field(default=10, ge=1, le=10**12, description="steps that one row of metrics is the mean of")
    log_layers: bool = Field(
        default=False,
        description="rows tell what each layer did in their last step: the cosine between its input and output, the "
        "norm of the gradient at its output, and the effective rank of the encoder's output",
    )
    batches: BatchesConfig | None = Field(default=None, description="instead of the recipe's")
    augment: AugmentConfig | None = Field(default=None, description="instead of the recipe's")
    deepspeed: str | None = Field(default=None, description="instead of cluster.deepspeed")

    @property
    def retention(self) -> CheckpointConfig:
        """Its settings of checkpoints, with as many of them kept as are averaged."""
        average = self.average
        if average is None or average.kind == "running":
            return self.checkpoint
        key = f"keep_{average.kind}"
        number = max(average.checkpoints, getattr(self.checkpoint, key))
        return self.checkpoint.model_copy(update={key: number})

    @model_validator(mode="after")
    def _there_is_something_to_average(self) -> "TrainingStage":
        if self.average is None or self.average.kind == "running":
            return self
        interval = self.checkpoint.every_steps
        what = "checkpoints"
        if self.average.kind == "best":
            # Only weights that were validated have an error rate.
            interval = math.lcm(interval, self.validate_every)
            what = "checkpoints that are validated"
        # There is always one at the end.
        if interval >= self.steps:
            raise ValueError(
                f"average is of the {self.average.kind} {what}, and the stage makes one every {interval} steps of its "
                f"{self.steps}: there would be one alone. Lower checkpoint.every_steps (best: to a multiple or a "
                "divisor of validate_every)"
            )
        return self

    @property
    def unseeded_name(self) -> str:
        """The stage's name in a recipe that gives seeds: that of all its repetitions."""
        return self.repeats or self.name


class RecognitionStage(TrainingStage, frozen=True, extra="forbid"):
    """What pretraining and distillation have in common: they need transcripts."""

    model: RecognizerConfig = Field(default_factory=RecognizerConfig, description="the recogniser")
    objective: ObjectiveConfig = Field(
        default_factory=ObjectiveConfig, description="weights of the terms of the recognition loss"
    )


class SelfSupervisedStage(TrainingStage, frozen=True, extra="forbid"):
    """An encoder learns from recordings alone; transcripts and tokenizer are not looked at."""

    kind: Literal["self_supervised"] = Field(description="BEST-RQ: masked frames' codes are predicted")
    model: MaskedPredictorConfig = Field(
        default_factory=MaskedPredictorConfig, description="the encoder and the quantizer whose codes it predicts"
    )
    objective: ExpertsObjectiveConfig = Field(
        default_factory=ExpertsObjectiveConfig, description="weights of the experts' terms of the loss"
    )
    # Masking replaces SpecAugment so that what is to be predicted is what was said.
    masking: MaskingConfig = Field(
        default_factory=MaskingConfig,
        description="takes the place of SpecAugment and time warp; of `augment` what is done to recordings counts",
    )

    @model_validator(mode="after")
    def _best_needs_error_rates(self) -> "SelfSupervisedStage":
        if self.average is not None and self.average.kind == "best":
            raise ValueError("average is of the best checkpoints, and without transcripts none has an error rate")
        return self


class PretrainStage(RecognitionStage, frozen=True, extra="forbid"):
    """A recogniser learns from transcripts alone."""

    kind: Literal["pretrain"] = Field(description="recognition loss on transcripts, no teacher")
    initialize_from: str | None = Field(
        default=None,
        description="an earlier training stage, or (with a slash) the folder of a finished model, that this one starts "
        "as; none: drawn anew",
    )
    initialize_outputs: bool = Field(
        default=True,
        description="CTC output, decoder and transducer are copied too where both models have the same; what has a row "
        "for each token only where both have the same tokens. With initialize_layers they are always drawn anew",
    )
    # The layers above are drawn anew.
    initialize_layers: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="how many of that encoder's layers are copied, from the lowest on, beside its front-end; none: all",
    )

    @model_validator(mode="after")
    def _layers_can_be_copied(self) -> "PretrainStage":
        if self.initialize_layers is None:
            return self
        if self.initialize_from is None:
            raise ValueError("initialize_layers is set and initialize_from is not: name what it starts from")
        try:
            check_layers_to_copy(self.model.encoder, self.initialize_layers)
        except ValueError as error:
            raise ValueError(f"initialize_layers is {self.initialize_layers}, and {error}") from None
        return self


class DistillStage(RecognitionStage, frozen=True, extra="forbid"):
    """A recogniser, the student, learns from transcripts and from one or several teachers."""

    kind: Literal["distill"] = Field(description="recognition loss on transcripts, beside the terms of distill")
    teacher: str | None = Field(
        default=None, description="an earlier training stage, or (with a slash) the folder of a finished model"
    )
    teachers: tuple[TeacherConfig, ...] = Field(
        default=(), description="instead of teacher: one or several, with what each of them teaches"
    )
    distill: DistillConfig = Field(
        default_factory=DistillConfig, description="terms of the loss against the teachers, and their weights"
    )
    initialize_from_teacher: bool = Field(
        default=False, description="start from the (first) teacher's weights where shapes allow it"
    )

    @model_validator(mode="after")
    def _teachers_are_given_once_with_different_names(self) -> "DistillStage":
        if self.teacher is not None and self.teachers:
            raise ValueError("both teacher and teachers are given; name one teacher, or list several in teachers")
        if self.teacher is None and not self.teachers:
            raise ValueError("neither teacher nor teachers are given; name one teacher, or list several in teachers")

        names = [teacher.name for teacher in self.named_teachers]
        for name in sorted(names):
            if names.count(name) > 1:
                raise ValueError(f"teachers has {names.count(name)} named {name!r}; give each a name of its own")
        return self

    @property
    def named_teachers(self) -> tuple[TeacherConfig, ...]:
        """The teachers, each with a name: its own, else its stage's, else teacher-N for a folder."""
        teachers = self.teachers
        if self.teacher is not None:
            teachers = (TeacherConfig(model=self.teacher),)

        named = []
        for number, teacher in enumerate(teachers, start=1):
            name = teacher.name
            if not name and teacher.is_folder:
                name = f"teacher-{number}"
            elif not name:
                name = teacher.model
            named.append(teacher.model_copy(update={"name": name}))
        return tuple(named)


class AdaptStage(RecognitionStage, frozen=True, extra="forbid"):
    """A finished recogniser is adapted to other speech; most of it, or all, stays as it is."""

    kind: Literal["adapt"] = Field(description="a finished model and few trained parameters")
    base: str = Field(
        description="the model that is adapted: an earlier training stage, or (with a slash) the folder of a finished "
        "model. Its tokenizer and the statistics of its features stay in use"
    )
    adapt: AdaptConfig = Field(description="what is trained, and what must not be lost")
    model: RecognizerConfig = Field(
        default_factory=RecognizerConfig, description="the base with its adapters: filled in, not to be given"
    )


class EvaluateStage(Stage, frozen=True, extra="forbid"):
    """Models of earlier stages recognise a split and are compared."""

    kind: Literal["evaluate"] = Field(description="nothing is trained")
    models: tuple[str, ...] = Field(min_length=1, description="training stages whose models are compared")
    split: str = Field(
        # The name of a folder beside that of train, and of nothing else.
        default="test",
        pattern=r"^\w[\w.-]*$",
        max_length=200,
        description="split of the corpus to recognise",
    )
    search: SearchConfig = Field(default_factory=GreedyConfig, description="how texts are found in a model's outputs")
    device: str | None = Field(
        default=None,
        pattern=f"^({DEVICE_PATTERN})$",
        description="where models compute: cpu, cuda or cuda:N; none: a GPU where DS_ACCELERATOR or PyTorch says so",
    )


AnyTrainingStage: TypeAlias = SelfSupervisedStage | PretrainStage | DistillStage | AdaptStage
AnyStage = Annotated[AnyTrainingStage | EvaluateStage, Field(discriminator="kind")]
