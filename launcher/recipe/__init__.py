"""The recipe: everything that a run is, as one YAML file."""

from launcher.recipe.averaging import AverageConfig
from launcher.recipe.checks import check_inputs, check_model_folders
from launcher.recipe.cluster import ClusterConfig
from launcher.recipe.corpora import MixtureCorpus, ShardsCorpus
from launcher.recipe.deepspeed_config import find_deepspeed_config, read_deepspeed_config, zero_stage
from launcher.recipe.distillation import DistillConfig, TeacherConfig
from launcher.recipe.loading import dump, find_recipe, load_recipe
from launcher.recipe.schema import Recipe
from launcher.recipe.search import GreedyConfig, SearchConfig
from launcher.recipe.stages import (
    AdaptStage,
    AnyTrainingStage,
    CheckpointConfig,
    DistillStage,
    EvaluateStage,
    OptimizerConfig,
    PretrainStage,
    RecoveryConfig,
    SelfSupervisedStage,
    TrainingStage,
)
from launcher.recipe.validation_messages import validate

__all__ = [
    "AdaptStage",
    "AnyTrainingStage",
    "AverageConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DistillConfig",
    "DistillStage",
    "EvaluateStage",
    "GreedyConfig",
    "MixtureCorpus",
    "OptimizerConfig",
    "PretrainStage",
    "Recipe",
    "RecoveryConfig",
    "SearchConfig",
    "SelfSupervisedStage",
    "ShardsCorpus",
    "TeacherConfig",
    "TrainingStage",
    "check_inputs",
    "check_model_folders",
    "dump",
    "find_deepspeed_config",
    "find_recipe",
    "load_recipe",
    "read_deepspeed_config",
    "validate",
    "zero_stage",
]
