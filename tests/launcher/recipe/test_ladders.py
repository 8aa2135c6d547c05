"""The ladders: rungs that are compared differ in what they are compared for, and in nothing else."""

import pytest

from launcher.recipe import DistillStage, EvaluateStage, PretrainStage, load_recipe
from model.encoder import Encoder

LADDERS = (
    "ladder",
    "ladder-routing",
    "ladder-sharing",
    "ladder-taught",
    "ladder-views",
    "ladder-aelita",
    "ladder-prompts",
    "ladder-mboshi",
)
SEARCH = "objective-search"
TAUGHT = {"taught-plain": "experts", "taught-norms": "norms", "taught": "routers"}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The rungs of a ladder under its first seed, by name."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = [f"corpus.manifest={folder}"]
    keys = {"ladder-aelita": [], "ladder-prompts": manifest, "ladder-mboshi": manifest}
    recipes = {}
    for name in (*LADDERS, SEARCH):
        recipes[name] = load_recipe(name, keys.get(name, [f"corpus.root={folder}"]))

    def rungs(name):
        stages = {}
        for stage in recipes[name].training_stages():
            stages.setdefault(stage.unseeded_name, stage)
        return stages

    rungs.recipes = recipes
    return rungs


def encoder_parameters(stage):
    return sum(parameter.numel() for parameter in Encoder(stage.model.encoder, 80).parameters())


@pytest.mark.parametrize("name", LADDERS)
def test_rungs_differ_in_their_model_and_in_how_they_learn_alone(name, ladder):
    rungs = ladder(name)
    first = next(iter(rungs.values()))
    for rung in rungs.values():
        assert (rung.objective, rung.optimizer, rung.augment, rung.batches) == (
            first.objective,
            first.optimizer,
            None,
            None,
        )
        if rung.unseeded_name != "full-longer":
            assert rung.steps == first.steps


@pytest.mark.parametrize("name", ["ladder", "ladder-aelita", "ladder-prompts"])
def test_the_longer_teacher_has_the_steps_of_teacher_and_student_together(name, ladder):
    rungs = ladder(name)
    assert rungs["full-longer"].steps == rungs["full"].steps + rungs["distilled"].steps
    assert rungs["full-longer"].model == rungs["full"].model


@pytest.mark.parametrize("name", ["ladder", "ladder-taught", "ladder-aelita", "ladder-prompts"])
def test_a_taught_rung_is_one_without_a_teacher_and_the_default_distillation(name, ladder):
    rungs = ladder(name)
    for taught, untaught in TAUGHT.items():
        assert isinstance(rungs[taught], DistillStage)
        assert isinstance(rungs[untaught], PretrainStage)
        assert rungs[taught].model == rungs[untaught].model
        assert untaught in rungs[taught].compare_to
        # It starts from nothing: what it gains is what it is taught.
        assert not rungs[taught].initialize_from_teacher
        assert rungs[taught].teacher.startswith("full-")
    for other in ("taught-norms", "taught-routers-only", "taught"):
        assert rungs[other].distill == rungs["taught-plain"].distill


def test_the_taught_rungs_are_all_four_combinations_of_norms_and_routers(ladder):
    def owners(stage):
        return stage.model.encoder.norms, stage.model.encoder.experts.router.scope

    rungs = ladder("ladder-taught")
    assert owners(rungs["taught-plain"]) == ("group", "group")
    assert owners(rungs["taught-norms"]) == ("layer", "group")
    assert owners(rungs["taught-routers-only"]) == ("group", "layer")
    assert owners(rungs["taught"]) == ("layer", "layer")


@pytest.mark.parametrize("name", ["ladder", "ladder-aelita", "ladder-prompts", "ladder-mboshi"])
def test_taught_and_started_students_have_a_third_of_their_teachers_encoder(name, ladder):
    rungs = ladder(name)
    assert rungs["taught"].model == rungs["started"].model == rungs["distilled"].model
    assert encoder_parameters(rungs["distilled"]) <= 0.34 * encoder_parameters(rungs["full"])


def test_the_larger_ladder_has_no_rung_without_experts_that_is_much_smaller_than_its_student(ladder):
    rungs = ladder("ladder-mboshi")
    assert rungs["full"].model.encoder.layers == 12
    assert rungs["distilled"].model.encoder.block_of_layer == [0] * 6 + [1] * 6
    assert encoder_parameters(rungs["shared-wide"]) == pytest.approx(encoder_parameters(rungs["distilled"]), rel=0.03)


def test_the_former_rungs_differ_in_how_their_branches_start_alone(ladder):
    rungs = ladder("ladder-sharing")
    assert list(rungs) == ["experts", "experts-former", "norms", "norms-former", "routers", "routers-former"]
    for name in ("experts", "norms", "routers"):
        former = rungs[f"{name}-former"].model
        assert (rungs[name].model.encoder.branch_exponent, former.encoder.branch_exponent) == (1.5, 0)
        encoder = former.encoder.model_copy(update={"branch_exponent": 1.5})
        assert former.model_copy(update={"encoder": encoder}) == rungs[name].model
        assert rungs[f"{name}-former"].compare_to == (name,)


def test_every_objective_of_the_search_is_another_and_nothing_else_differs(ladder):
    rungs = ladder(SEARCH)
    teacher = rungs.pop("full")
    untaught = rungs.pop("routers")
    assert len(rungs) >= 50
    objectives = set()
    for trial in rungs.values():
        assert isinstance(trial, DistillStage)
        assert trial.teacher == teacher.name
        assert trial.model == untaught.model
        assert (trial.steps, trial.optimizer, trial.seed) == (untaught.steps, untaught.optimizer, untaught.seed)
        objectives.add((trial.initialize_from_teacher, trial.distill.model_dump_json()))
    assert len(objectives) == len(rungs)


def test_the_search_looks_at_no_test_recordings_and_at_no_seed_of_the_ladders(ladder):
    search = ladder.recipes[SEARCH]
    assert search.stages[-1].split == "dev"
    searched = {stage.seed for stage in search.training_stages()}
    for name in LADDERS:
        assert searched.isdisjoint(stage.seed for stage in ladder.recipes[name].training_stages())


@pytest.mark.parametrize("name", [*LADDERS, SEARCH])
def test_every_training_of_a_ladder_is_evaluated(name, ladder):
    recipe = ladder.recipes[name]
    evaluation = recipe.stages[-1]
    assert isinstance(evaluation, EvaluateStage)
    assert sorted(evaluation.models) == sorted(stage.name for stage in recipe.training_stages())


def test_views_have_as_many_parameters_as_the_one_kernel_that_they_are_compared_with(ladder):
    rungs = ladder("ladder-views")
    assert encoder_parameters(rungs["views"]) == encoder_parameters(rungs["long"])
    assert encoder_parameters(rungs["kernels"]) > encoder_parameters(rungs["long"])
