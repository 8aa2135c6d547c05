"""What a recipe may say: its sections, and where each of them is looked up.

Stages are in `stages`, hosts and processes in `cluster`. The models refuse unknown keys, values of the wrong type, and
values that contradict each other within one section; what must hold between sections is in `checks`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from data.augmentation import AugmentConfig
from data.corpora import CorpusConfig
from data.features import FeaturesConfig
from data.sampling.sampler import BatchesConfig
from data.shards.index import SUMMARY, NoShardsError, is_url, read_summary
from data.text.tokenizer import TokenizerConfig
from launcher.errors import ConfigError
from launcher.recipe.cluster import ClusterConfig
from launcher.recipe.corpora import MixtureCorpus, ShardsCorpus, corpus_paths
from launcher.recipe.deepspeed_config import find_deepspeed_config
from launcher.recipe.stages import (
    AdaptStage,
    AnyStage,
    AnyTrainingStage,
    DistillStage,
    EvaluateStage,
    PretrainStage,
    SelfSupervisedStage,
    TrainingStage,
)
from launcher.run_folder import RunFolder
from launcher.tracking.config import TrackingConfig


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """All that a run is: a corpus, stages in their order, and where they run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$", description="name of the run and of its default folder"
    )
    seed: int = Field(default=1, ge=0, le=2**63 - 1, description="the one source of every random number")
    corpus: Annotated[
        CorpusConfig | ShardsCorpus | MixtureCorpus, Field(discriminator="name", description="recordings and texts")
    ]
    features: FeaturesConfig = Field(default_factory=FeaturesConfig, description="the log-mel front-end")
    augment: AugmentConfig = Field(
        default_factory=AugmentConfig, description="speeds and masks of stages without their own"
    )
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="how transcripts become tokens")
    stages: tuple[AnyStage, ...] = Field(min_length=1, description="trainings and evaluations, in this order")
    batches: BatchesConfig = Field(description="size and order of the batches of stages without their own")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="where the run takes place")
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description="where metrics go beside metrics.jsonl"
    )

    def stage(self, name: str) -> AnyTrainingStage | EvaluateStage:
        """Return the stage of that name; ConfigError naming the ones there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise ConfigError(f"Recipe {self.name} has no stage {name!r}; its stages are {names}.")

    def training_stage(self, name: str) -> AnyTrainingStage:
        """Return the training stage of that name; ConfigError when it is none."""
        stage = self.stage(name)
        if isinstance(stage, EvaluateStage):
            raise ConfigError(f"Stage {name} of recipe {self.name} evaluates models; it has none of its own.")
        return stage

    def recognition_stage(self, name: str) -> PretrainStage | DistillStage | AdaptStage:
        """Return the stage of that name; ConfigError when it trains no recogniser."""
        stage = self.training_stage(name)
        if isinstance(stage, SelfSupervisedStage):
            raise ConfigError(
                f"Stage {name} of recipe {self.name} learns without transcripts: its model is an encoder, which "
                f"recognises nothing. Name a recogniser, such as a pretrain stage with initialize_from: {name}."
            )
        return stage

    def training_stages(self) -> list[AnyTrainingStage]:
        """Return the stages that train, in their order."""
        return [stage for stage in self.stages if not isinstance(stage, EvaluateStage)]

    def batches_of(self, stage: TrainingStage) -> BatchesConfig:
        """Return a stage's own batches, else the recipe's."""
        return stage.batches or self.batches

    def augment_of(self, stage: TrainingStage) -> AugmentConfig:
        """Return a stage's own augmentation, else the recipe's."""
        return stage.augment or self.augment

    def seed_of(self, stage: TrainingStage) -> int:
        """Return a stage's own seed, else the recipe's."""
        # 0 is a seed too: only a stage without one takes the recipe's.
        if stage.seed is None:
            return self.seed
        return stage.seed

    def deepspeed_of(self, stage: TrainingStage) -> Path:
        """Return the DeepSpeed JSON file of a stage; ConfigError naming those there are if it is none."""
        return find_deepspeed_config(stage.deepspeed or self.cluster.deepspeed)

    def expert_parallel_of(self, stage: TrainingStage) -> int:
        """Return how many processes share one set of experts: 1 for a model without experts."""
        if stage.model.encoder.experts is None:
            return 1
        return self.cluster.expert_parallel

    def corpora(self) -> dict[str, Any]:
        """Return the corpora by their labels; a corpus without a mixture has none."""
        if isinstance(self.corpus, MixtureCorpus):
            return {entry.label: entry.corpus for entry in self.corpus.mix}
        return {"": self.corpus}

    @property
    def knows_training_texts(self) -> bool:
        """Whether the tokenizer knows every character of the corpora: it was trained on all of them."""
        return self.tokenizer.knows_training_texts and len(self.initial_labels()) == len(self.corpora())

    def split_folders(self, run: RunFolder, split: str) -> dict[str, Path | str]:
        """Return the folder or URL of a split's shards in each corpus by its label, whether or not it is there."""
        folders: dict[str, Path | str] = {}
        for label, corpus in self.corpora().items():
            if not isinstance(corpus, ShardsCorpus):
                folders[label] = run.corpus / label / split
                continue
            place = f"{corpus.shards.rstrip('/')}/{split}"
            # A URL stays a string: Path would make one slash of its two.
            if is_url(place):
                folders[label] = place
            else:
                folders[label] = Path(place)
        return folders

    def split_folder(self, run: RunFolder, split: str) -> Path | str:
        """Return the folder or URL of a split's shards in the only corpus that there is."""
        (folder,) = self.split_folders(run, split).values()
        return folder

    def present_folders(self, run: RunFolder, split: str) -> dict[str, Path | str]:
        """Return the same of the corpora that have the split."""
        present: dict[str, Path | str] = {}
        for label, folder in self.split_folders(run, split).items():
            if _is_split(folder):
                present[label] = folder
        return present

    def initial_folders(self, run: RunFolder, split: str) -> dict[str, Path | str]:
        """Return the same of the corpora that the tokenizer and the statistics of the features are made of."""
        labels = self.initial_labels()
        return {label: folder for label, folder in self.present_folders(run, split).items() if label in labels}

    def initial_labels(self) -> list[str]:
        """Return the labels of these corpora; a corpus without a mixture has none."""
        if isinstance(self.corpus, MixtureCorpus):
            return [entry.label for entry in self.corpus.initial]
        return [""]

    def has_split(self, run: RunFolder, split: str) -> bool:
        """Return whether a split's shards are there: in any corpus of a mixture, and those of train in every one."""
        present = self.present_folders(run, split)
        if split == "train":
            return len(present) == len(self.corpora())
        return bool(present)

    def corpus_paths(self) -> Iterator[tuple[str, Path]]:
        """Yield (dotted key, path) of every file or folder that the corpus section names."""
        return corpus_paths(self.corpus, "corpus")


def _is_split(folder: Path | str) -> bool:
    if isinstance(folder, Path):
        return (folder / SUMMARY).is_file()
    try:
        read_summary(folder)
    # A store that does not answer, or refuses, is an error: it is not a corpus without that split.
    except NoShardsError:
        return False
    return True
