"""What must hold between the settings of a recipe, checked before any process starts.

`check_recipe` looks at the recipe and its DeepSpeed configurations, `check_inputs` at the files it starts
from. Each refusal says which settings disagree, with their values, and which values would do.
"""

from pathlib import Path

from data.errors import DataError
from data.shard_index import read_summary
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.deepspeed_config import check_deepspeed_config
from launcher.recipe.schema import DistillStage, EvaluateStage, Recipe, TrainingStage
from launcher.recipe.search import check_search_files, check_search_model
from launcher.recipe.text import nearest
from model.encoder import EncoderConfig

# Names inside a run folder that a stage of the same name would collide with.
RESERVED_NAMES = ("prepare", "tokenizer", "report", "corpus", "wandb", "nodes")


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose settings contradict each other (ConfigError)."""
    _check_names(recipe)
    for position, stage in enumerate(recipe.stages):
        earlier = [s.name for s in recipe.stages[:position] if s.kind != "evaluate"]
        if stage.kind == "evaluate":
            _check_models(recipe, stage, earlier)
            continue
        if stage.kind == "distill":
            _check_teacher(recipe, stage, earlier)
        _check_topology(recipe, stage)
        check_deepspeed_config(recipe.deepspeed_of(stage), stage.name, recipe.expert_parallel_of(stage))


def check_inputs(recipe: Recipe) -> None:
    """Refuse a recipe whose corpus, language model, hotwords (DataError) or teacher (CheckpointError) is not on the
    disk."""
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
    for stage in recipe.training_stages():
        if stage.kind == "distill" and _is_folder(stage.teacher) and not any(Path(stage.teacher).glob("*.safetensors")):
            raise CheckpointError(
                f"The teacher of stage {stage.name} is the folder {stage.teacher}, which holds no finished "
                "model (*.safetensors). Name the model folder of a finished stage, such as "
                "runs/mini/teacher/model."
            )


def _is_folder(teacher: str) -> bool:
    return "/" in teacher


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
        check_search_model(stage.search, recipe.training_stage(model).model, f"model {model} of stage {stage.name}")


def _check_teacher(recipe: Recipe, stage: DistillStage, earlier: list[str]) -> None:
    if _is_folder(stage.teacher):
        return
    if stage.teacher not in earlier:
        raise ConfigError(
            f"The teacher of stage {stage.name} is {stage.teacher!r}, which is not an earlier training stage"
            f"{nearest(stage.teacher, earlier)} A finished model is given as a path with a slash."
        )
    check_frame_rates(stage, recipe.training_stage(stage.teacher).model.encoder)
    student, hidden = stage.model.encoder, stage.distill.hidden
    if not hidden.weight and not hidden.cosine:
        return
    teacher = recipe.training_stage(stage.teacher).model.encoder
    for key in ("layers", "width"):
        if getattr(teacher, key) != getattr(student, key):
            raise ConfigError(
                f"Stage {stage.name} compares hidden states layer by layer, but its encoder.{key} is "
                f"{getattr(student, key)} and its teacher's is {getattr(teacher, key)}. Make them equal, "
                "or set distill.hidden.weight and distill.hidden.cosine to 0."
            )
    beyond = [layer for layer in hidden.layers or () if not 0 <= layer < student.layers]
    if beyond:
        raise ConfigError(
            f"Stage {stage.name} compares layers {beyond} in distill.hidden.layers, but there are layers 0 "
            f"to {student.layers - 1}."
        )


def check_frame_rates(stage: DistillStage, teacher: EncoderConfig) -> None:
    """Refuse a student that is compared to its teacher frame by frame and has fewer or more of them (ConfigError)."""
    distill, mine, theirs = stage.distill, stage.model.encoder.subsampling.factor, teacher.subsampling.factor
    if mine != theirs and (distill.hidden.weight or distill.hidden.cosine or distill.ctc.weight):
        raise ConfigError(
            f"Stage {stage.name} is compared to its teacher frame by frame, but its encoder.subsampling.factor is "
            f"{mine} and its teacher's is {theirs}. Make them equal, or set distill.hidden.weight, "
            "distill.hidden.cosine and distill.ctc.weight to 0."
        )


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
