"""What must hold between the settings of a recipe, checked before any process starts.

`check_recipe` looks at the recipe and its DeepSpeed configurations, `check_inputs` at the files it starts
from. Each refusal says which settings disagree, with their values, and which values would do.
"""

from pathlib import Path

from data.errors import DataError
from data.masking import Masking
from data.shards.index import read_summary
from data.text.given_model import read_given_model
from launcher.errors import ConfigError
from launcher.recipe.augmentation import check_augmentation, check_augmentation_recordings
from launcher.recipe.bases import check_adaptation, check_base
from launcher.recipe.deepspeed_config import check_deepspeed_config
from launcher.recipe.distillation import TeacherConfig
from launcher.recipe.freezing import check_freeze
from launcher.recipe.schema import Recipe
from launcher.recipe.search import check_search_files, check_search_model
from launcher.recipe.stages import (
    AdaptStage,
    DistillStage,
    EvaluateStage,
    PretrainStage,
    SelfSupervisedStage,
    TrainingStage,
)
from launcher.recipe.teachers import (
    check_cacheable,
    check_teacher,
    read_model_features,
    read_spec,
    spec_of_stage,
    terms_of,
)
from launcher.recipe.yaml_io import nearest
from launcher.run_folder import is_folder
from model.encoder import EncoderConfig
from model.export import read_description
from model.recognizer import RecognizerConfig
from model.upcycle import check_start_from_encoder, check_start_from_teacher

# Less than this is as good as 0 for most of the decay, which is exponential.
LEAST_FINAL_RATIO = 1e-6
# Names inside a run folder that a stage of the same name would collide with.
RESERVED_NAMES = ("prepare", "features", "tokenizer", "report", "corpus", "wandb", "nodes")


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose settings contradict each other (ConfigError)."""
    check_stage_names(recipe)

    # A stage may only use models of stages before it: they run in this order.
    earlier: list[str] = []
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            check_evaluated_models(recipe, stage, earlier)
            continue

        check_compared_stages(recipe, stage)
        if isinstance(stage, DistillStage):
            check_teachers(recipe, stage, earlier)
            if stage.distill.cache.required or stage.distill.cache.use == "make":
                check_cacheable(recipe, stage)
        if isinstance(stage, PretrainStage) and stage.initialize_from:
            check_is_earlier(_starting_encoder(stage), stage.initialize_from, earlier)
            if not is_folder(stage.initialize_from):
                check_start(stage, recipe.training_stage(stage.initialize_from).model.encoder)
        if isinstance(stage, AdaptStage):
            check_is_earlier(f"The base of stage {stage.name}", stage.base, earlier)
            check_adaptation(recipe, stage)
        if isinstance(stage, SelfSupervisedStage):
            check_masking(recipe, stage)
        check_augmentation(recipe, stage)
        check_freeze(recipe, stage)
        check_topology(recipe, stage)
        check_deepspeed_config(recipe.deepspeed_of(stage), stage.name, recipe.expert_parallel_of(stage))
        earlier.append(stage.name)


def check_inputs(recipe: Recipe) -> None:
    """Refuse a recipe whose corpus, language model, hotwords (DataError), recordings for augmentation (ConfigError),
    teacher or start (CheckpointError) is not on the disk."""
    for key, path in recipe.corpus_paths():
        if not path.exists():
            raise DataError(
                f"{key} of recipe {recipe.name} is {path}, which does not exist. Pass --set {key}=PATH or "
                "mend it in the recipe; a relative path counts from the folder that chorus is started in."
            )
    # `shards` may be a URL, so it is no Path and not among corpus_paths.
    for corpus in recipe.corpora().values():
        if corpus.name == "shards":
            read_summary(f"{corpus.shards.rstrip('/')}/train")
    if recipe.tokenizer.model is not None:
        read_given_model(recipe.tokenizer.model)
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            check_search_files(stage.search, f"stages.{stage.name}.search")
    check_augmentation_recordings(recipe)
    check_model_folders(recipe)


def check_model_folders(recipe: Recipe) -> None:
    """Refuse a folder of a teacher or a start that is not there or cannot be read (CheckpointError), or whose model
    cannot teach a student what it is to learn, or start an encoder (ConfigError)."""
    for stage in recipe.training_stages():
        if isinstance(stage, DistillStage):
            for teacher in stage.named_teachers:
                if teacher.is_folder:
                    spec = read_spec(Path(teacher.model), _teacher(stage, teacher))
                    check_teacher(recipe, stage, teacher, spec)
            first = stage.named_teachers[0]
            if stage.initialize_from_teacher and first.is_folder:
                check_start_from_folder(stage, first)

        if isinstance(stage, AdaptStage):
            check_base(recipe, stage)
        if isinstance(stage, PretrainStage) and stage.initialize_from and is_folder(stage.initialize_from):
            spec = read_spec(Path(stage.initialize_from), _starting_encoder(stage))
            if spec.kind != "chorus":
                raise ConfigError(
                    f"{_starting_encoder(stage)} is the folder {stage.initialize_from}, which holds a model of "
                    f"{spec.kind}. Name the model folder of a finished stage; other models can only be teachers of a "
                    "distill stage."
                )
            check_start(stage, read_description(Path(stage.initialize_from)).encoder)
            check_same_features(recipe, stage)


def check_compared_stages(recipe: Recipe, stage: TrainingStage) -> None:
    """Refuse to compare a stage with what the recipe does not train (ConfigError)."""
    names = {other.unseeded_name for other in recipe.training_stages()} - {stage.unseeded_name}
    for name in stage.compare_to:
        if name not in names:
            raise ConfigError(
                f"Stage {stage.name} is to be compared with {name!r} (compare_to), which is no other training stage of "
                f"recipe {recipe.name}; without their seeds they are {', '.join(sorted(names)) or 'none'}."
            )


def check_start(stage: PretrainStage, source: EncoderConfig) -> None:
    """Refuse an encoder that the stage's own cannot start as (ConfigError)."""
    try:
        check_start_from_encoder(stage.model.encoder, source, stage.initialize_layers)
    except ValueError as error:
        raise ConfigError(
            f"Stage {stage.name} cannot start from {stage.initialize_from} (initialize_from): {error}. Change "
            f"stages.{stage.name}.model.encoder, or start from another stage."
        ) from None


def check_same_features(recipe: Recipe, stage: PretrainStage) -> None:
    """Refuse an encoder from a folder that was trained on other features than the recipe's (ConfigError)."""
    assert stage.initialize_from is not None
    # That they can be read has been seen by `read_spec`.
    stored = read_model_features(Path(stage.initialize_from))
    for key, value in recipe.features.model_dump(mode="json").items():
        stored_value = stored["config"].get(key, value)
        if stored_value != value:
            raise ConfigError(
                f"Stage {stage.name} cannot start from {stage.initialize_from} (initialize_from): its features.{key} "
                f"was {stored_value} and is {value} in this recipe. Make them equal."
            )


def check_start_from_folder(stage: DistillStage, teacher: TeacherConfig) -> None:
    """Refuse a folder whose model the student cannot start as (ConfigError)."""
    recognizer = None
    if read_spec(Path(teacher.model), _teacher(stage, teacher)).kind == "chorus":
        recognizer = read_description(Path(teacher.model)).recognizer
    if recognizer is None:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {teacher.model}, which is not a recogniser of Chorus. Put "
            "one that is first among its teachers, or set initialize_from_teacher to false."
        )
    check_student_start(stage, teacher, recognizer)


def check_student_start(stage: DistillStage, teacher: TeacherConfig, recognizer: RecognizerConfig) -> None:
    """Refuse a teacher whose weights do not fit the student that is to start from them (ConfigError)."""
    try:
        check_start_from_teacher(stage.model, recognizer)
    except ValueError as error:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {teacher.model} (initialize_from_teacher): {error}. Change "
            f"stages.{stage.name}.model, or set initialize_from_teacher to false."
        ) from None


def check_stage_names(recipe: Recipe) -> None:
    """Refuse stages of the same name, or of one that the run folder uses itself (ConfigError)."""
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


def check_evaluated_models(recipe: Recipe, stage: EvaluateStage, earlier: list[str]) -> None:
    """Refuse models that are not of an earlier stage, or that the stage's search cannot use (ConfigError)."""
    for name in stage.models:
        if name not in earlier:
            raise ConfigError(
                f"Stage {stage.name} evaluates {name!r}, which is not an earlier training stage{nearest(name, earlier)}"
            )
        # Refuses an encoder that learnt without transcripts, which recognises nothing.
        model = recipe.recognition_stage(name).model
        check_search_model(stage.search, model, f"model {name} of stage {stage.name}")


def check_teachers(recipe: Recipe, stage: DistillStage, earlier: list[str]) -> None:
    """Refuse teachers that are not there yet or do not fit, and terms that nobody teaches (ConfigError).

    Teachers that are folders are read by `check_model_folders`, because a recipe may be looked at where they are not.
    """
    taught: set[str] = set()
    for teacher in stage.named_teachers:
        check_is_earlier(_teacher(stage, teacher), teacher.model, earlier)
        if not teacher.is_folder:
            check_teacher(recipe, stage, teacher, spec_of_stage(recipe, teacher.model))
        taught |= terms_of(stage, teacher)

    first = stage.named_teachers[0]
    if stage.initialize_from_teacher and not first.is_folder:
        check_student_start(stage, first, recipe.recognition_stage(first.model).model)

    # The weight of such a term would have no effect.
    for term in sorted(stage.distill.active()):
        if term not in taught:
            raise ConfigError(
                f"Stage {stage.name} gives distill.{term} a weight, but no teacher has {term} among its terms. Add it "
                "to one of them, or set the weight to 0."
            )


def check_is_earlier(what: str, model: str, earlier: list[str]) -> None:
    """Refuse a model that is neither a folder nor of an earlier stage (ConfigError, which begins with `what`)."""
    if not is_folder(model) and model not in earlier:
        raise ConfigError(
            f"{what} is {model!r}, which is not an earlier training stage{nearest(model, earlier)} A finished model is "
            "given as a path with a slash."
        )


def check_masking(recipe: Recipe, stage: SelfSupervisedStage) -> None:
    """Refuse masks that do not fit the frames of the stage's encoder (ConfigError)."""
    # Masking refuses spans shorter than an encoder frame: none would ever be masked as a whole.
    try:
        Masking(stage.masking, recipe.features, stage.model.encoder.subsampling.factor, recipe.seed_of(stage))
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name}: {error}.") from None


def check_optimizer(stage: TrainingStage) -> None:
    """Refuse an optimizer under which weights would not move, or turn around (ConfigError)."""
    optimizer = stage.optimizer
    key = f"stages.{stage.name}.optimizer"
    if optimizer.schedule == "tri_stage" and optimizer.final_ratio < LEAST_FINAL_RATIO:
        raise ConfigError(
            f"{key}.final_ratio is {optimizer.final_ratio:g}, and the schedule tri_stage decays exponentially towards "
            f"that share of the peak: the learning rate would be 0 for half of the training. Set it to "
            f"{LEAST_FINAL_RATIO:g} or more, such as 0.02, or choose the schedule cosine, which may end at 0."
        )
    # AdamW multiplies weights by 1 - learning rate * weight_decay.
    if optimizer.weight_decay * optimizer.peak_learning_rate >= 1:
        raise ConfigError(
            f"{key}.weight_decay is {optimizer.weight_decay:g} and peak_learning_rate "
            f"{optimizer.peak_learning_rate:g}: their product, the share of a weight that each update takes away, must "
            "be below 1. Lower one of them."
        )


def check_topology(recipe: Recipe, stage: TrainingStage) -> None:
    """Refuse processes that lanes, or experts, cannot be divided among evenly (ConfigError)."""
    processes = recipe.cluster.processes
    expert_parallel = recipe.cluster.expert_parallel
    lanes = recipe.batches_of(stage).lanes
    experts = stage.model.encoder.experts

    # lanes / processes is DeepSpeed's gradient_accumulation_steps, which is the same on every process.
    if lanes % processes:
        raise ConfigError(
            f"cluster.processes is {processes}, which does not divide the {lanes} lanes of stage "
            f"{stage.name} (batches.lanes). Choose one of {_divisors(lanes)} processes, or other lanes "
            "(which changes the batches)."
        )
    # Processes are cut into groups of this size, each with one set of experts.
    if processes % expert_parallel:
        raise ConfigError(
            f"cluster.expert_parallel is {expert_parallel}, which does not divide the {processes} processes "
            f"(cluster.processes). Choose one of {_divisors(processes)}: --set cluster.expert_parallel=N."
        )
    # Each process of a group holds an equal slice of the stack of experts.
    if experts and experts.count % expert_parallel:
        raise ConfigError(
            f"cluster.expert_parallel is {expert_parallel}, which does not divide the {experts.count} experts of "
            f"stage {stage.name} (model.encoder.experts.count). Choose one of {_divisors(experts.count)}."
        )


def _teacher(stage: DistillStage, teacher: TeacherConfig) -> str:
    if len(stage.named_teachers) == 1:
        return f"The teacher of stage {stage.name}"
    return f"The teacher {teacher.name} of stage {stage.name}"


def _starting_encoder(stage: PretrainStage) -> str:
    return f"The encoder that stage {stage.name} starts from"


def _divisors(number: int) -> str:
    divisors = [str(divisor) for divisor in range(1, number + 1) if number % divisor == 0]
    return ", ".join(divisors)
