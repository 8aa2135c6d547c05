"""What a recipe may say: every section, its keys, their units and defaults.

The models refuse unknown keys, values of the wrong type, and values that contradict each other within one
section; what must hold between sections is in `checks`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, model_validator

from data.augment import AugmentConfig
from data.corpora import CorpusConfig
from data.errors import DataError
from data.features import FeaturesConfig
from data.masking import MaskingConfig
from data.sampler import BatchesConfig
from data.shard_index import SUMMARY, is_url, read_summary
from data.tokenizer import TokenizerConfig
from launcher.errors import ConfigError
from launcher.recipe.deepspeed_config import find_deepspeed_config
from launcher.recipe.distillation import DistillConfig, TeacherConfig
from launcher.recipe.search import GreedyConfig, SearchConfig
from launcher.recipe.slurm import SlurmConfig
from launcher.run_folder import RunFolder
from launcher.tracking.config import TrackingConfig
from model.losses import ExpertsObjectiveConfig, ObjectiveConfig
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import RecognizerConfig
from model.upcycle import check_layers_to_copy


class ShardsCorpus(BaseModel, frozen=True, extra="forbid"):
    """A corpus that was prepared before: a folder with one folder of shards per split."""

    name: Literal["shards"] = "shards"
    shards: str = Field(description="folder written by `chorus prepare`, or its URL")


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW and its learning-rate schedule."""

    peak_learning_rate: float = Field(
        default=1e-3, gt=0, description="highest learning rate, reached after the warm-up"
    )
    warmup_steps: int = Field(default=100, ge=0, description="steps of linear rise from 0 to the peak")
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
        default=0.01, ge=0, description="decoupled decay of matrices; norms and biases have none"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="decay of the first and second moment")
    clip_norm: float = Field(default=1.0, gt=0, description="largest global norm of the gradient")

    @model_validator(mode="after")
    def _betas_are_decays(self) -> "OptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must be at least 0 and below 1")
        if self.schedule != "cosine" and self.warmup_steps == 0:
            raise ValueError(f"the schedule {self.schedule} needs a warm-up; set warmup_steps to 1 or more")
        return self


class CheckpointConfig(BaseModel, frozen=True, extra="forbid"):
    every_steps: int = Field(default=200, ge=1, description="steps between checkpoints; there is always one at the end")
    keep_last: int = Field(default=2, ge=1, description="how many of the newest checkpoints stay on the disk")
    keep_best: int = Field(
        default=1,
        ge=1,
        description="how many of those with the lowest validation/cer stay; counts checkpoints of steps that "
        "validate_every divides, because only their weights were validated",
    )
    keep_every: int | None = Field(
        default=None, ge=1, description="checkpoints of steps that it divides stay for good; none: not by their step"
    )


class RecoveryConfig(BaseModel, frozen=True, extra="forbid"):
    """What becomes of steps whose loss or gradient is infinite or undefined. Such an update is never applied."""

    max_skips: int = Field(
        default=5, ge=0, description="updates in a row that are left out before the weights are taken back"
    )
    max_rollbacks: int = Field(
        default=2,
        ge=0,
        description="times that the weights are taken back to an earlier checkpoint, and the steps since then passed "
        "over, before the stage ends with exit code 6",
    )


class Stage(BaseModel, frozen=True, extra="forbid"):
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="name of the stage and of its folder")


class TrainingStage(Stage, frozen=True, extra="forbid"):
    """What all stages that train have in common."""

    about: str = Field(default="", description="what the stage is, in a line, for comparisons")
    repeats: str | None = Field(
        default=None, description="what the stage is called without its seed; set where seeds made stages of one"
    )
    seed: int | None = Field(
        default=None, ge=0, description="of weights, order of the data, augmentation, instead of the recipe's"
    )
    model: RecognizerConfig | MaskedPredictorConfig
    objective: ExpertsObjectiveConfig
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    steps: int = Field(ge=1, description="optimizer updates")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    validate_every: int = Field(
        default=200, ge=1, description="steps between validations; there is always one at the end"
    )
    log_every: int = Field(default=10, ge=1, description="steps that one row of metrics is the mean of")
    batches: BatchesConfig | None = Field(default=None, description="instead of the recipe's")
    augment: AugmentConfig | None = Field(default=None, description="instead of the recipe's")
    deepspeed: str | None = Field(default=None, description="instead of cluster.deepspeed")

    @property
    def unseeded_name(self) -> str:
        """The stage's name in a recipe that gives seeds: that of all its repetitions."""
        return self.repeats or self.name


class RecognitionStage(TrainingStage, frozen=True, extra="forbid"):
    """What pretraining and distillation have in common: they need transcripts."""

    model: RecognizerConfig = Field(default_factory=RecognizerConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)


class SelfSupervisedStage(TrainingStage, frozen=True, extra="forbid"):
    """An encoder learns from recordings alone; transcripts and tokenizer are not looked at."""

    kind: Literal["self_supervised"]
    model: MaskedPredictorConfig = Field(default_factory=MaskedPredictorConfig)
    objective: ExpertsObjectiveConfig = Field(default_factory=ExpertsObjectiveConfig)
    masking: MaskingConfig = Field(
        default_factory=MaskingConfig, description="takes the place of SpecAugment; of `augment` only speeds count"
    )


class PretrainStage(RecognitionStage, frozen=True, extra="forbid"):
    kind: Literal["pretrain"]
    initialize_from: str | None = Field(
        default=None,
        description="an earlier training stage, or (with a slash) the folder of a finished model, whose encoder this "
        "one starts as; none: drawn anew. CTC output, decoder and transducer are always drawn anew",
    )
    initialize_layers: int | None = Field(
        default=None,
        ge=0,
        description="how many of that encoder's layers are copied, from the lowest on, beside its front-end; none: all",
    )

    @model_validator(mode="after")
    def _layers_can_be_copied(self) -> "PretrainStage":
        if self.initialize_layers is not None:
            if self.initialize_from is None:
                raise ValueError("initialize_layers is set and initialize_from is not: name what it starts from")
            try:
                check_layers_to_copy(self.model.encoder, self.initialize_layers)
            except ValueError as error:
                raise ValueError(f"initialize_layers is {self.initialize_layers}, and {error}") from None
        return self


class DistillStage(RecognitionStage, frozen=True, extra="forbid"):
    kind: Literal["distill"]
    teacher: str | None = Field(
        default=None, description="an earlier training stage, or (with a slash) the folder of a finished model"
    )
    teachers: tuple[TeacherConfig, ...] = Field(
        default=(), description="instead of teacher: one or several, with what each of them teaches"
    )
    distill: DistillConfig = Field(default_factory=DistillConfig)
    initialize_from_teacher: bool = Field(
        default=False, description="start from the (first) teacher's weights where shapes allow it"
    )

    @model_validator(mode="after")
    def _teachers_are_told_apart(self) -> "DistillStage":
        if (self.teacher is None) == (not self.teachers):
            seen = "both teacher and teachers" if self.teachers else "neither teacher nor teachers"
            raise ValueError(f"{seen} are given; name one teacher, or list several in teachers")
        names = [teacher.name for teacher in self.named_teachers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"teachers has {names.count(doubled[0])} named {doubled[0]!r}; give each a name of its own"
            )
        return self

    @property
    def named_teachers(self) -> tuple[TeacherConfig, ...]:
        """The teachers, each with a name."""
        teachers = self.teachers or (TeacherConfig(model=self.teacher or ""),)
        return tuple(
            teacher.model_copy(
                update={"name": teacher.name or (f"teacher-{number}" if teacher.is_folder else teacher.model)}
            )
            for number, teacher in enumerate(teachers, 1)
        )


class EvaluateStage(Stage, frozen=True, extra="forbid"):
    kind: Literal["evaluate"]
    models: tuple[str, ...] = Field(min_length=1, description="training stages whose models are compared")
    split: str = Field(default="test", description="split of the corpus to recognise")
    search: SearchConfig = Field(default_factory=GreedyConfig)


AnyTrainingStage: TypeAlias = SelfSupervisedStage | PretrainStage | DistillStage
AnyStage = Annotated[AnyTrainingStage | EvaluateStage, Field(discriminator="kind")]


class ClusterConfig(BaseModel, frozen=True, extra="forbid"):
    """Where the run takes place. Apart from `precision`, nothing here changes what is computed."""

    processes: int = Field(default=1, ge=1, description="training processes; one per GPU where there are GPUs")
    expert_parallel: int = Field(
        default=1, ge=1, description="processes that share one set of experts, in stages with experts"
    )
    deepspeed: str = Field(default="zero2", description="a name in ds_configs/ or a JSON file")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of matrix products; weights and moments are fp32"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads per process; none: cores // processes")
    data_workers: int = Field(default=2, ge=1, description="threads per process that read and decode audio")
    launcher: Literal["local", "ssh", "no_ssh", "slurm"] | None = Field(
        default=None,
        description="local: all processes on this machine; ssh: one connection to each host of the hostfile; no_ssh: "
        "the same command is started on every host by hand; slurm: a batch job; none: ssh with a hostfile, else local",
    )
    hostfile: Path | None = Field(default=None, description="hosts to train on, one `NAME slots=N` a line")
    include: str | None = Field(default=None, description="only these of the hostfile: NAME[:SLOT,...], joined by @")
    exclude: str | None = Field(default=None, description="not these of the hostfile: NAME[:SLOT,...], joined by @")
    master_address: str | None = Field(
        default=None, description="where the processes find the first one; none: the name of the first host"
    )
    master_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of the first process; none: a free one, new at every start"
    )
    exchange_bytes_per_s: float | None = Field(
        default=None,
        gt=0,
        description="what a host sends to others in an all-to-all, as `chorus doctor` measures it; `chorus plan` "
        "judges by it, and assumes 10 Gbit/s without",
    )
    environment: tuple[str, ...] = Field(
        default=(), description="names of further environment variables that processes on other hosts get"
    )
    ssh_options: tuple[str, ...] = Field(default=(), description="options of ssh, such as [-F, ssh_config]")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    max_restarts: int = Field(
        default=3, ge=0, description="restarts of a stage within an hour, after a lost or hung process"
    )
    startup_deadline_s: float = Field(
        default=300, gt=0, description="longest time until every process reports itself and its first step, in s"
    )
    stall_deadline_s: float = Field(
        default=120, gt=0, description="longest silence of a process in a step before the restart, in s"
    )
    validation_deadline_s: float = Field(
        default=300, gt=0, description="longest silence of a process that validates, in s; it reports every batch"
    )
    save_deadline_s: float = Field(
        default=600, gt=0, description="longest silence of a process that saves a checkpoint or the model, in s"
    )
    stop_deadline_s: float = Field(default=30, gt=0, description="time to save and leave when the run is stopped, in s")

    @model_validator(mode="after")
    def _hosts_have_a_launcher(self) -> "ClusterConfig":
        if self.kind in ("ssh", "no_ssh") and not self.hostfile:
            raise ValueError(f"the launcher {self.kind} needs a hostfile; pass --hostfile FILE")
        if self.kind in ("local", "slurm") and self.hostfile:
            raise ValueError(
                f"the launcher {self.kind} does not use a hostfile, which is {self.hostfile}; leave out one of both"
            )
        if not self.hostfile and (self.include or self.exclude):
            raise ValueError("include and exclude choose from a hostfile, and there is none; pass --hostfile FILE")
        if self.kind == "slurm" and self.processes % self.slurm.nodes:
            raise ValueError(
                f"processes is {self.processes}, which slurm.nodes, {self.slurm.nodes}, does not divide; every node "
                "gets the same number"
            )
        if self.kind == "slurm" and self.slurm.signal_s <= self.stop_deadline_s:
            raise ValueError(
                f"stop_deadline_s is {self.stop_deadline_s:g}, and slurm.signal_s, {self.slurm.signal_s}, is when the "
                "job is told of its end; make it longer"
            )
        return self

    @property
    def kind(self) -> str:
        """How processes are started: the launcher, or what follows from the hostfile."""
        return self.launcher or ("ssh" if self.hostfile else "local")

    @property
    def longest_deadline_s(self) -> float:
        """Return how long a process may wait for another at most."""
        return max(self.startup_deadline_s, self.stall_deadline_s, self.validation_deadline_s, self.save_deadline_s)


class Recipe(BaseModel, frozen=True, extra="forbid"):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run and of its default folder")
    seed: int = Field(default=1, ge=0, description="the one source of every random number")
    corpus: Annotated[CorpusConfig | ShardsCorpus, Field(discriminator="name")]
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    stages: tuple[AnyStage, ...] = Field(min_length=1)
    batches: BatchesConfig
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def stage(self, name: str) -> AnyTrainingStage | EvaluateStage:
        """Return the stage of that name; ConfigError naming the ones there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(
            f"Recipe {self.name} has no stage {name!r}; its stages are {', '.join(s.name for s in self.stages)}."
        )

    def training_stage(self, name: str) -> AnyTrainingStage:
        """Return the training stage of that name; ConfigError when it is none."""
        stage = self.stage(name)
        if isinstance(stage, EvaluateStage):
            raise ConfigError(f"Stage {name} of recipe {self.name} evaluates models; it has none of its own.")
        return stage

    def recognition_stage(self, name: str) -> PretrainStage | DistillStage:
        """Return the stage of that name; ConfigError when it trains no recogniser."""
        stage = self.training_stage(name)
        if isinstance(stage, SelfSupervisedStage):
            raise ConfigError(
                f"Stage {name} of recipe {self.name} learns without transcripts: its model is an encoder, which "
                f"recognises nothing. Name a recogniser, such as a pretrain stage with initialize_from: {name}."
            )
        return stage

    def training_stages(self) -> list[AnyTrainingStage]:
        return [stage for stage in self.stages if not isinstance(stage, EvaluateStage)]

    def batches_of(self, stage: TrainingStage) -> BatchesConfig:
        return stage.batches or self.batches

    def augment_of(self, stage: TrainingStage) -> AugmentConfig:
        return stage.augment or self.augment

    def seed_of(self, stage: TrainingStage) -> int:
        return self.seed if stage.seed is None else stage.seed

    def deepspeed_of(self, stage: TrainingStage) -> Path:
        """Return the DeepSpeed JSON file of a stage; ConfigError naming those there are if it is none."""
        return find_deepspeed_config(stage.deepspeed or self.cluster.deepspeed)

    def expert_parallel_of(self, stage: TrainingStage) -> int:
        """Return how many processes share one set of experts: 1 for a model without experts."""
        return self.cluster.expert_parallel if stage.model.encoder.experts else 1

    def split_folder(self, run: RunFolder, split: str) -> Path | str:
        """Return the folder or URL of a split's shards: in the run, or where they were prepared before."""
        if not isinstance(self.corpus, ShardsCorpus):
            return run.corpus / split
        place = f"{self.corpus.shards.rstrip('/')}/{split}"
        return place if is_url(place) else Path(place)

    def has_split(self, run: RunFolder, split: str) -> bool:
        """Return whether a split's shards are there."""
        folder = self.split_folder(run, split)
        if isinstance(folder, Path):
            return (folder / SUMMARY).is_file()
        try:
            read_summary(folder)
        except DataError:
            return False
        return True

    def corpus_paths(self) -> Iterator[tuple[str, Path]]:
        """Yield (dotted key, path) of every file or folder that the corpus section names."""
        for key, value in self.corpus:
            if isinstance(value, Path):
                yield f"corpus.{key}", value
