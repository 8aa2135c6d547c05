"""What a recipe may say, how it is read and overridden, and what is refused before anything starts."""

import json

import pytest
import yaml

from data.errors import DataError
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe import EvaluateStage, check_inputs, load_recipe
from launcher.recipe import dump as dump_recipe
from launcher.recipe.deepspeed_config import DEEPSPEED_CONFIGS
from launcher.recipe.loading import BUILT_IN_RECIPES
from launcher.run_folder import RunFolder


@pytest.fixture
def refuse():
    """Load `mini` with overrides and return why it is refused."""

    def refusal(*overrides, recipe="mini"):
        with pytest.raises(ConfigError) as error:
            load_recipe(recipe, overrides)
        return str(error.value)

    return refusal


@pytest.fixture
def deepspeed(tmp_path):
    """Write a DeepSpeed configuration and return the override that uses it."""

    def write(values):
        path = tmp_path / "plan.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return f"cluster.deepspeed={path}"

    return write


def test_the_resolved_recipe_loads_again_to_the_same_one(tmp_path):
    recipe = load_recipe("mini", ["stages.student.optimizer.betas=[0.8, 0.95]", "cluster.threads=3"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_setting_of_a_stage_is_addressed_by_the_stages_name():
    recipe = load_recipe("mini", ["stages.student.steps=30", "stages.student.batches={lanes: 4, seconds: 5}"])
    assert recipe.training_stage("student").steps == 30
    assert recipe.training_stage("teacher").steps != 30
    assert recipe.batches_of(recipe.training_stage("student")).lanes == 4


def test_later_settings_win_and_values_have_yaml_types():
    recipe = load_recipe("mini", ["seed=1", "seed=7", "cluster.threads=null", "augment.speeds=[1.0]"])
    assert recipe.seed == 7
    assert recipe.cluster.threads is None
    assert recipe.augment.speeds == (1.0,)


@pytest.mark.parametrize(
    ("override", "path", "proposal"),
    [
        ("stages.teacher.stesp=3", "stages.teacher.stesp", "steps"),
        ("stages.student.optimizer.peak_lr=3", "stages.student.optimizer.peak_lr", ""),
        ("stages.student.model.encoder.expert={}", "stages.student.model.encoder.expert", "experts"),
        ("stages.student.distill.hidden.wieght=1", "stages.student.distill.hidden.wieght", "weight"),
        ("tracking.wandb.projct=x", "tracking.wandb.projct", "project"),
        ("clutser.processes=2", "clutser", "cluster"),
        ("corpus.cut=[phrases]", "corpus.cut", "cuts"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_key(refuse, override, path, proposal):
    message = refuse(override)
    assert f"{path} is not a key" in message
    assert not proposal or f"did you mean {proposal!r}?" in message


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("stages.teacher.steps=many", ["stages.teacher.steps is 'many' (str)", "valid integer"]),
        ("stages.teacher.steps=0", ["stages.teacher.steps is 0 (int)", "greater than or equal to 1"]),
        ("cluster.precision=fp8", ["cluster.precision is 'fp8'", "'fp32' or 'bf16'"]),
        ("stages.teacher.optimizer.betas=[0.9, 1.5]", ["stages.teacher.optimizer", "[0.9, 1.5]", "below 1"]),
        ("stages.teacher.kind=pretian", ["stages.teacher.kind is 'pretian'", "did you mean 'pretrain'"]),
        ("corpus.name=aelitta", ["corpus.name is 'aelitta'", "did you mean 'aelita'"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_what_was_seen_and_expected(refuse, override, fragments):
    message = refuse(override)
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("stages.techer.steps=3", "did you mean 'teacher'?"),
        ("stages.teacher.steps", "not of the form"),
        ("seed.of.all=3", "which has no key 'of'"),
        ("seed=[", "not readable as YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(refuse, override, fragment):
    assert fragment in refuse(override)


def test_a_key_given_twice_is_refused_instead_of_the_last_one_winning(tmp_path, refuse):
    path = tmp_path / "twice.yaml"
    path.write_text("name: twice\nseed: 1\nseed: 2\n")
    message = refuse(recipe=str(path))
    assert "the key seed is given twice" in message
    assert "line" in message


def test_an_unknown_recipe_is_refused_with_the_nearest_built_in_one(refuse):
    assert "did you mean 'mini'?" in refuse(recipe="minni")


def test_digits_asks_for_the_corpus_folder(refuse):
    assert "corpus.root is missing" in refuse(recipe="digits")


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["cluster.processes=3"], "does not divide the 2 lanes of stage teacher"),
        (["cluster.expert_parallel=3"], "does not divide the 2 processes"),
        (
            ["cluster.processes=6", "batches.lanes=6", "cluster.expert_parallel=3"],
            "does not divide the 4 experts",
        ),
        (["stages.student.teacher=techer"], "did you mean 'teacher'?"),
        (["stages.student.teacher=student"], "not an earlier training stage"),
        (["stages.evaluation.models=[teacher, pupil]"], "evaluates 'pupil'"),
        (["stages.evaluation.search.kind=transducer"], "model teacher of stage evaluation has none (model.transducer)"),
        (["stages.teacher.name=corpus"], "a name that the run folder uses itself"),
        (["stages.teacher.name=student"], "2 stages named 'student'"),
        (["stages.student.model.encoder.layers=4"], "encoder.layers is 4 and its teacher's is 6"),
        (["stages.student.distill.hidden.layers=[5, 6]"], "compares layers [6]"),
        (["cluster.deepspeed=zero9"], "no DeepSpeed configuration 'zero9'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_starts(refuse, overrides, fragment):
    assert fragment in refuse(*overrides)


def test_a_number_of_processes_that_does_not_fit_is_refused_with_those_that_would(refuse):
    assert "Choose one of 1, 2, 4 processes" in refuse("batches.lanes=4", "cluster.processes=3")


def test_expert_parallelism_concerns_only_stages_with_experts():
    recipe = load_recipe("mini")
    assert recipe.expert_parallel_of(recipe.training_stage("teacher")) == 1
    assert recipe.expert_parallel_of(recipe.training_stage("student")) == 2


def zero(**values):
    return {"zero_optimization": values}


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        (zero(stage=1, contiguous_gradients=False), "sums the gradients of different"),
        (zero(stage=0), "clips wrongly when experts are"),
        ({}, "has ZeRO stage 0"),
        ({**zero(stage=2), "activation_checkpointing": {}}, "reentrant"),
        ({**zero(stage=2), "expert_parallel": {"enabled": True}}, "its own copy of shared experts"),
    ],
)
def test_what_deepspeed_would_compute_wrongly_is_refused_with_the_reason(refuse, deepspeed, values, fragment):
    assert fragment in refuse(deepspeed(values))


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        (zero(stage=3, offload_param={"device": "cpu"}), "has offload_param"),
        (zero(stage=2, offload_optimizer={"device": "cpu"}), "has offload_optimizer"),
        (zero(stage=2, offload_param={"device": "nvme"}), "has offload_param"),
        (zero(stage=1, cpu_offload=True), "has cpu_offload"),
    ],
)
def test_what_checkpoints_do_not_cover_is_refused_with_what_would_do(refuse, deepspeed, values, fragment):
    message = refuse(deepspeed(values))
    assert fragment in message
    assert "zero1 or zero2" in message


@pytest.mark.parametrize(
    ("key", "value", "decided_by"),
    [
        ("train_batch_size", 8, "batches.lanes"),
        ("train_micro_batch_size_per_gpu", 2, "batches.seconds"),
        ("gradient_accumulation_steps", 4, "batches.lanes over cluster.processes"),
        ("gradient_clipping", 1.0, "optimizer.clip_norm"),
        ("optimizer", {"type": "Adam"}, "the optimizer section"),
        ("scheduler", {"type": "WarmupLR"}, "optimizer.schedule"),
        ("fp16", {"enabled": False}, "cluster.precision"),
        ("bf16", {"enabled": True}, "cluster.precision"),
        ("bfloat16", {"enabled": True}, "cluster.precision"),
        ("amp", {"enabled": True}, "cluster.precision"),
        ("torch_autocast", {"enabled": True}, "cluster.precision"),
        ("steps_per_print", 10, "log_every"),
    ],
)
def test_what_the_recipe_decides_has_no_second_source(refuse, deepspeed, key, value, decided_by):
    assert f"Remove from it {key}: {decided_by}" in refuse(deepspeed({**zero(stage=2), key: value}))


def test_all_keys_that_the_recipe_decides_are_named_at_once(refuse, deepspeed):
    message = refuse(deepspeed({**zero(stage=2), "fp16": {}, "gradient_clipping": 1.0}))
    assert "fp16: cluster.precision" in message
    assert "gradient_clipping: optimizer.clip_norm" in message


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ("{", "not readable as JSON"),
        ("[]", "holds no JSON object"),
        ({"zero_optimization": 2}, "has 2 for zero_optimization"),
        (zero(stage="two"), "has 'two' for zero_optimization.stage"),
    ],
)
def test_a_deepspeed_configuration_of_the_wrong_shape_is_refused_with_what_was_seen(
    refuse, deepspeed, values, fragment
):
    assert fragment in refuse(deepspeed(values))


@pytest.mark.parametrize("path", sorted(DEEPSPEED_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_deepspeed_configuration_that_comes_with_chorus_is_accepted(path):
    parallel = 1 if path.stem == "zero0" else 2
    recipe = load_recipe("mini", [f"cluster.deepspeed={path.stem}", f"cluster.expert_parallel={parallel}"])
    assert {recipe.deepspeed_of(stage) for stage in recipe.training_stages()} == {path}


def test_relative_paths_count_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits", ["corpus.root=digits", "stages.student.teacher=old/model"])
    assert dict(recipe.corpus_paths()) == {"corpus.root": tmp_path / "digits"}
    assert recipe.training_stage("student").teacher == str(tmp_path / "old/model")


def test_a_corpus_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(DataError, match=r"corpus\.root of recipe digits is .*/nowhere, which does not exist"):
        check_inputs(load_recipe("digits", [f"corpus.root={tmp_path}/nowhere"]))


def test_shards_prepared_before_are_named_by_their_folder_alone(tmp_path):
    values = yaml.safe_load(dump_recipe(load_recipe("mini")))
    values["corpus"] = {"shards": str(tmp_path / "shards")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(path)
    assert recipe.split_folder(RunFolder(tmp_path / "run"), "dev") == tmp_path / "shards" / "dev"
    with pytest.raises(DataError, match="no shards at"):
        check_inputs(recipe)


def test_a_student_is_compared_frame_by_frame_only_at_its_teachers_frame_rate(refuse):
    other_rate = "stages.student.model.encoder.subsampling.factor=6"
    message = refuse(other_rate)
    assert "encoder.subsampling.factor is 6 and its teacher's is 4" in message
    uncompared = [f"stages.student.distill.{part}.weight=0" for part in ("hidden", "ctc")]
    own_start = "stages.student.initialize_from_teacher=false"
    recipe = load_recipe("mini", [other_rate, *uncompared, own_start, "stages.student.distill.hidden.cosine=0"])
    assert recipe.training_stage("student").model.encoder.subsampling.factor == 6


def test_a_teacher_folder_without_a_model_is_refused_before_anything_starts(tmp_path):
    recipe = load_recipe("mini", [f"stages.student.teacher={tmp_path}/nothing"])
    with pytest.raises(CheckpointError, match="holds no finished model"):
        check_inputs(recipe)


@pytest.fixture
def listening(tmp_path):
    """Writes a recipe whose first stage learns without transcripts, with changes, and returns its path."""

    def write(first=(), second=(), **further):
        listener = {"name": "listener", "kind": "self_supervised", "steps": 5, **dict(first)}
        teacher = {"name": "teacher", "kind": "pretrain", "steps": 5, "initialize_from": "listener", **dict(second)}
        values = {"name": "r", "corpus": {"name": "aelita"}, "batches": {}, "stages": [listener, teacher], **further}
        path = tmp_path / "listening.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_a_stage_may_start_from_one_that_learnt_without_transcripts(listening, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(listening())
    assert recipe.training_stage("listener").masking.span_s == 0.4
    assert recipe.recognition_stage("teacher").initialize_from == "listener"
    elsewhere = load_recipe(listening(), ["stages.teacher.initialize_from=old/model"])
    assert elsewhere.recognition_stage("teacher").initialize_from == str(tmp_path / "old/model")
    with pytest.raises(CheckpointError, match="encoder that stage teacher starts from is the folder"):
        check_inputs(elsewhere)
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_model_that_is_not_one_of_chorus_can_teach_but_not_start(listening, tmp_path):
    config = {"model_type": "hubert", "conv_stride": [5, 2, 2], "num_hidden_layers": 2, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"stage teacher starts from .* holds a model of transformers"):
        check_inputs(load_recipe(listening(second={"initialize_from": str(tmp_path)})))


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("stages.teacher.initialize_from=lisener", "did you mean 'listener'?"),
        ("stages.teacher.initialize_from=teacher", "which is not an earlier training stage"),
        ("stages.listener.masking.span_s=0.03", "choose at least 0.04"),
        ("stages.listener.masking.span=1", "did you mean 'span_s'?"),
        ("stages.listener.model.decoder={}", "stages.listener.model.decoder is not a key"),
        ("stages.listener.objective.ctc_weight=1", "stages.listener.objective.ctc_weight is not a key"),
        ("stages.teacher.kind=self_supervised", "stages.teacher.initialize_from is not a key"),
    ],
)
def test_what_such_a_stage_cannot_do_is_refused(listening, refuse, override, fragment):
    assert fragment in refuse(override, recipe=str(listening()))


@pytest.mark.parametrize(
    ("second", "fragment"),
    [
        ({"initialize_layers": 13}, "initialize_layers is 13, and there are 12 layers"),
        ({"initialize_layers": 5, "model": {"encoder": {"groups": 2}}}, "layer 4 and some above it share a block"),
        ({"initialize_layers": 5, "initialize_from": None}, "name what it starts from"),
    ],
)
def test_layers_that_cannot_be_copied_without_others_are_refused(listening, second, fragment):
    with pytest.raises(ConfigError, match=fragment):
        load_recipe(listening(second=second))
    assert load_recipe(listening(second={"initialize_layers": 5})).recognition_stage("teacher").initialize_layers == 5


def test_an_encoder_alone_neither_teaches_nor_is_evaluated(listening, refuse):
    evaluation = {"name": "evaluation", "kind": "evaluate", "models": ["listener"]}
    stages = yaml.safe_load(listening().read_text())["stages"]
    assert "recognises nothing" in refuse(recipe=str(listening(stages=[stages[0], evaluation])))
    student = {"name": "student", "kind": "distill", "steps": 5, "teacher": "listener"}
    assert "recognises nothing" in refuse(recipe=str(listening(stages=[stages[0], student])))


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN_RECIPES.glob("*.yaml")))
def test_every_built_in_recipe_is_valid(name, tmp_path):
    ladders = ("ladder", "ladder-routing", "ladder-sharing", "ladder-taught", "ladder-views")
    of_a_folder = ("adapt-digits", "digits", *ladders, "objective-search")
    published = ("librispeech-100", "librispeech-960", "aishell", "common-voice", "gigaspeech")
    corpora = dict.fromkeys((*of_a_folder, *published), "root")
    corpora |= {"base": "shards", "ladder-prompts": "manifest", "ladder-mboshi": "manifest"}
    recipe = load_recipe(name, [f"corpus.{corpora[name]}={tmp_path}"] if name in corpora else [])
    assert recipe.name == name
    assert isinstance(recipe.stages[-1], EvaluateStage)
