"""What must hold between the settings of a recipe, checked before any process starts.

`check_recipe` looks at the recipe and its DeepSpeed configurations, `check_inputs` at the files it starts
from. Each refusal says which settings disagree, with their values, and which values would do.
"""

from pathlib import Path

from data.errors import DataError
from data.masking import Masking
from data.shard_index import read_summary
from launcher.errors import ConfigError
from launcher.recipe.deepspeed_config import check_deepspeed_config
from launcher.recipe.distillation import TeacherConfig
from launcher.recipe.schema import (
    DistillStage,
    EvaluateStage,
    PretrainStage,
    Recipe,
    SelfSupervisedStage,
    TrainingStage,
)
from launcher.recipe.search import check_search_files, check_search_model
from launcher.recipe.teachers import check_teacher, read_spec, spec_of_stage, terms_of
from launcher.recipe.yaml_io import nearest
from launcher.run_folder import is_folder

# Names inside a run folder that a stage of the same name would collide with.
RESERVED_NAMES = ("prepare", "features", "tokenizer", "report", "corpus", "wandb", "nodes")


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose settings contradict each other (ConfigError)."""
    _check_names(recipe)
    for position, stage in enumerate(recipe.stages):
        earlier = [s.name for s in recipe.stages[:position] if s.kind != "evaluate"]
        if stage.kind == "evaluate":
            _check_models(recipe, stage, earlier)
            continue
        if stage.kind == "distill":
            _check_teachers(recipe, stage, earlier)
        if stage.kind == "pretrain" and stage.initialize_from:
            _check_earlier(_start(stage), stage.initialize_from, earlier)
        if stage.kind == "self_supervised":
            _check_masking(recipe, stage)
        _check_topology(recipe, stage)
        check_deepspeed_config(recipe.deepspeed_of(stage), stage.name, recipe.expert_parallel_of(stage))


def check_inputs(recipe: Recipe) -> None:
    """Refuse a recipe whose corpus, language model, hotwords (DataError), teacher or start (CheckpointError) is not
    on the disk."""
    for key, path in recipe.corpus_paths():
        if not path.exists():
            raise DataError(
                f"{key} of recipe {recipe.name} is {path}, which does not exist. Pass --set {key}=PATH or "
                "mend it in the recipe; a relative path counts from the folder that chorus is started in."
            )
    if recipe.corpus.name == "shards":
        read_summary(f"{recipe.corpus.shards.rstrip('/')}/train")
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            check_search_files(stage.search, f"stages.{stage.name}.search")
    check_model_folders(recipe)


def check_model_folders(recipe: Recipe) -> None:
    """Refuse a folder of a teacher or a start that is not there or cannot be read (CheckpointError), or whose model
    cannot teach a student what it is to learn, or start an encoder (ConfigError)."""
    for stage in recipe.training_stages():
        if isinstance(stage, DistillStage):
            for teacher in stage.named_teachers:
                if teacher.is_folder:
                    spec = read_spec(Path(teacher.model), _whose(stage, teacher))
                    check_teacher(recipe, stage, teacher, spec)
        if isinstance(stage, PretrainStage) and stage.initialize_from and is_folder(stage.initialize_from):
            _check_start(stage, Path(stage.initialize_from))


def _whose(stage: DistillStage, teacher: TeacherConfig) -> str:
    name = "" if len(stage.named_teachers) == 1 else f" {teacher.name}"
    return f"The teacher{name} of stage {stage.name}"


def _start(stage: PretrainStage) -> str:
    return f"The encoder that stage {stage.name} starts from"


def _check_start(stage: PretrainStage, folder: Path) -> None:
    spec = read_spec(folder, _start(stage))
    if spec.kind != "chorus":
        raise ConfigError(
            f"{_start(stage)} is the folder {folder}, which holds a model of {spec.kind}. Name the model folder of a "
            "finished stage; other models can only be teachers of a distill stage."
        )


def _check_earlier(what: str, model: str, earlier: list[str]) -> None:
    if not is_folder(model) and model not in earlier:
        raise ConfigError(
            f"{what} is {model!r}, which is not an earlier training stage{nearest(model, earlier)} A finished model is "
            "given as a path with a slash."
        )


def _check_masking(recipe: Recipe, stage: SelfSupervisedStage) -> None:
    try:
        Masking(stage.masking, recipe.features, stage.model.encoder.subsampling.factor, recipe.seed_of(stage))
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name}: {error}.") from None


def _check_names(recipe: Recipe) -> None:
    names = [stage.name for stage in recipe.stages]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"Recipe {recipe.name} has {names.count(name)} stages named {name!r}; rename all but one."
            )
        if name in RESERVED_NAMES:
            raise ConfigError(
                f"Recipe {recipe.name} has a stage named {name!r}, a name that the run folder uses itself "
                f"({', '.join(RESERVED_NAMES)}); rename it."
            )


def _check_models(recipe: Recipe, stage: EvaluateStage, earlier: list[str]) -> None:
    for model in stage.models:
        if model not in earlier:
            raise ConfigError(
                f"Stage {stage.name} evaluates {model!r}, which is not an earlier training "
                f"stage{nearest(model, earlier)}"
            )
        check_search_model(stage.search, recipe.recognition_stage(model).model, f"model {model} of stage {stage.name}")


def _check_teachers(recipe: Recipe, stage: DistillStage, earlier: list[str]) -> None:
    for teacher in stage.named_teachers:
        _check_earlier(_whose(stage, teacher), teacher.model, earlier)
        if not teacher.is_folder:
            check_teacher(recipe, stage, teacher, spec_of_stage(recipe, teacher.model))
    _check_terms(stage)


def _check_terms(stage: DistillStage) -> None:
    untaught = [term for term in sorted(stage.distill.active()) if not _taught(stage, term)]
    if untaught:
        raise ConfigError(
            f"Stage {stage.name} gives distill.{untaught[0]} a weight, but no teacher has {untaught[0]} among its "
            "terms. Add it to one of them, or set the weight to 0."
        )


def _taught(stage: DistillStage, term: str) -> bool:
    return any(term in terms_of(stage, teacher) for teacher in stage.named_teachers)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _check_topology(recipe: Recipe, stage: TrainingStage) -> None:
    processes, parallel = recipe.cluster.processes, recipe.cluster.expert_parallel
    lanes = recipe.batches_of(stage).lanes
    if lanes % processes:
        raise ConfigError(
            f"cluster.processes is {processes}, which does not divide the {lanes} lanes of stage "
            f"{stage.name} (batches.lanes). Choose one of {_divisors(lanes)} processes, or other lanes "
            "(which changes the batches)."
        )
    experts = stage.model.encoder.experts
    if processes % parallel:
        raise ConfigError(
            f"cluster.expert_parallel is {parallel}, which does not divide the {processes} processes "
            f"(cluster.processes). Choose one of {_divisors(processes)}: --set cluster.expert_parallel=N."
        )
    if experts and experts.count % parallel:
        raise ConfigError(
            f"cluster.expert_parallel is {parallel}, which does not divide the {experts.count} experts of "
            f"stage {stage.name} (model.encoder.experts.count). Choose one of {_divisors(experts.count)}."
        )
