"""One stage of one run, as whoever works on it needs it: the recipe, the run folder, and what follows from both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from data.augmentation import AugmentConfig
from data.sampling.sampler import BatchesConfig
from data.shards.index import is_url
from data.shards.joined_split import SplitIndex, read_split
from launcher.recipe import Recipe, TrainingStage
from launcher.recipe.stages import Stage
from launcher.run_folder import RunFolder, StageFolder, is_folder

StageT = TypeVar("StageT", bound=Stage, covariant=True)


@dataclass(frozen=True)
class StageContext(Generic[StageT]):
    """A stage beside the recipe and the run folder that it belongs to.

    `StageContext[DistillStage]` is the context of a distillation. `seed`, `batches`, `augment`, `expert_parallel` and
    `deepspeed_file` are those of training stages: the stage's own where it has them, else the recipe's.
    """

    recipe: Recipe
    run: RunFolder
    stage: StageT

    @classmethod
    def training(cls, recipe: Recipe, run: RunFolder, name: str) -> "StageContext":
        """The context of a training stage by its name; ConfigError when there is none of that name."""
        return StageContext(recipe, run, recipe.training_stage(name))

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def folder(self) -> StageFolder:
        """Where the stage's metrics, checkpoints, logs and finished model are."""
        return self.run.stage(self.stage.name)

    @property
    def seed(self) -> int:
        return self.recipe.seed_of(self._training)

    @property
    def batches(self) -> BatchesConfig:
        return self.recipe.batches_of(self._training)

    @property
    def augment(self) -> AugmentConfig:
        return self.recipe.augment_of(self._training)

    @property
    def subsampling_factor(self) -> int:
        """Feature frames per encoder frame."""
        return self._training.model.encoder.subsampling.factor

    @property
    def expert_parallel(self) -> int:
        """Processes that share one set of experts; 1 for a model without experts."""
        return self.recipe.expert_parallel_of(self._training)

    @property
    def deepspeed_file(self) -> Path:
        return self.recipe.deepspeed_of(self._training)

    @property
    def uses_bf16(self) -> bool:
        return self.recipe.cluster.precision == "bf16"

    def split_folder(self, split: str) -> Path | str:
        """The folder or URL of a split's shards."""
        return self.recipe.split_folder(self.run, split)

    def has_split(self, split: str) -> bool:
        return self.recipe.has_split(self.run, split)

    def read_index(self, split: str) -> SplitIndex:
        """The index of a split's shards, of all corpora as one, or of the folder or URL of one. DataError when more of
        them is missing than may be quarantined."""
        max_damaged = self.recipe.cluster.storage.max_quarantined
        if is_folder(split):
            # Of speech that is no part of the corpus.
            place = split if is_url(split) else Path(split)
            return read_split({"": place}, max_damaged=max_damaged)
        if split == "train":
            # Of every corpus: one that is not there is refused by its name.
            return read_split(self.recipe.split_folders(self.run, split), max_damaged=max_damaged)
        return read_split(self.recipe.present_folders(self.run, split), max_damaged=max_damaged)

    @property
    def _training(self) -> TrainingStage:
        # Evaluations have none of these settings.
        assert isinstance(self.stage, TrainingStage)
        return self.stage
