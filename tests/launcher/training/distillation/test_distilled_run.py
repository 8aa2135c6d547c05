"""Distillation by real processes: units and helpers over checkpoints, ZeRO stages and numbers of processes."""

import shutil

import processes
import pytest
import torch
import yaml
from conftest import write_recipe
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import STAGE, write_teacher

from data.text.tokenizer import Tokenizer
from launcher.cli import main
from launcher.errors import ConfigError
from launcher.inference.finished_model import FinishedModel
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json
from launcher.stages.context import StageContext
from launcher.tracking import read_metrics
from launcher.training.checkpoint import open_checkpoint
from launcher.training.distillation.setup import load_teachers
from launcher.training.inputs import open_inputs

STEPS = 6
# A teacher of other width and depth, whose units, states and texts count in turns.
LESSON = {
    "hidden": {"layers": [0, 1], "projection": True, "schedule": {"until": 0.5}},
    "decoder": {"weight": 0.0},
    "sequence": {"weight": 0.5, "search": "prefix_beam", "texts": 2, "beam": 3, "schedule": {"until": 0.8}},
    "units": {"weight": 0.5, "count": 5, "steps": 1, "masked_only": True, "schedule": {"warmup": 0.2, "until": 0.7}},
}


@pytest.fixture(scope="module")
def make_distilled(make_run, tmp_path_factory):
    """Makes runs of a distilling stage; `changes` are recipe overrides."""
    teacher = tmp_path_factory.mktemp("teacher") / "model"

    def make(name: str, *changes: str) -> RunFolder:
        run = make_run(name)
        start = yaml.safe_load((run.path / "start.yaml").read_text())
        if not teacher.exists():
            write_teacher(run, teacher, layers=3, groups=3, width=24, experts=None)
        stage = start["stages"][0]
        stage |= {"kind": "distill", "distill": LESSON, "steps": STEPS, "log_every": 1, "validate_every": 6}
        stage |= {"checkpoint": {"every_steps": 3, "keep_last": 9}}
        stage["teachers"] = [{"name": "wise", "model": str(teacher), "layers": [0, 2], "input": "clean"}]
        (run.path / "start.yaml").write_text(yaml.safe_dump(start))
        write_recipe(run, changes)
        return run

    return make


def train(run: RunFolder, world: int) -> None:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")


def losses(run: RunFolder) -> list[dict]:
    return [row for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row]


@pytest.fixture(scope="module")
def distilled(make_distilled) -> RunFolder:
    run = make_distilled("distilled")
    train(run, 2)
    return run


def test_terms_come_and_go_as_the_recipe_says_and_add_up_to_the_loss(distilled):
    rows = losses(distilled)
    terms = [{name.removeprefix("distill/") for name in row if name.startswith("distill/")} for row in rows]
    # Steps begin at 0, 1/6, 2/6, 3/6, 4/6 and 5/6 of the stage.
    assert terms == [
        {"hidden", "ctc", "sequence"},
        {"hidden", "ctc", "sequence", "units"},
        {"hidden", "ctc", "sequence", "units"},
        {"ctc", "sequence", "units"},
        {"ctc", "sequence", "units"},
        {"ctc"},
    ]
    for row in rows:
        parts = [value for name, value in row.items() if name.startswith(("loss/", "distill/"))]
        assert sum(parts) == pytest.approx(row["loss"], rel=1e-5)


def test_helpers_are_in_the_checkpoint_and_not_in_the_model(distilled, tmp_path):
    saved = open_checkpoint(distilled.stage(STAGE)).weights()
    helpers = {name for name in saved if name.startswith("helpers.")}
    assert helpers == {
        f"helpers.{helper}.{part}"
        for helper in ("hidden-wise-00", "hidden-wise-01", "units-wise")
        for part in ("weight", "bias")
    }
    with safe_open(distilled.stage(STAGE).model / "model.safetensors", framework="pt") as model:
        assert set(model.keys()) == set(saved) - helpers
    write_json(distilled.state_file, {"format": 1, "recipe": "small", "stages": {}})
    out = tmp_path / "model"
    assert main(["export", f"{distilled.path}/{STAGE}", "--step", "3", "--out", str(out)]) == 0
    assert set(FinishedModel.load(out).recognizer.state_dict()) == set(saved) - helpers


@pytest.mark.parametrize(
    ("world", "deepspeed"),
    [(1, "zero1"), (2, "zero3")],
)
def test_a_run_that_goes_on_elsewhere_keeps_its_units_and_helpers(distilled, make_distilled, world, deepspeed):
    """Halfway, with moments for all helpers, and then on other processes: the same losses as undisturbed."""
    run = make_distilled(f"moved-{deepspeed}")
    source, target = distilled.stage(STAGE), run.stage(STAGE)
    target.checkpoints.mkdir(parents=True)
    shutil.copytree(source.checkpoint(3), target.checkpoint(3))
    shutil.copytree(source.units_file("wise").parent, target.units_file("wise").parent)
    write_recipe(
        run,
        (f"cluster.processes={world}", f"cluster.expert_parallel={world}", f"cluster.deepspeed={deepspeed}"),
    )
    before = target.units_file("wise").stat().st_mtime_ns
    train(run, world)
    assert target.units_file("wise").stat().st_mtime_ns == before
    expected = [row for row in losses(distilled) if row["step"] > 3]
    for row, wanted in zip(losses(run), expected, strict=True):
        for name, value in wanted.items():
            if name.startswith(("loss", "distill/")):
                assert row[name] == pytest.approx(value, rel=1e-4), name


def test_units_do_not_depend_on_the_number_of_processes(distilled, make_distilled):
    run = make_distilled("alone", f"stages.{STAGE}.steps=1", "cluster.processes=1", "cluster.expert_parallel=1")
    train(run, 1)
    units = [load_file(of.stage(STAGE).units_file("wise"))["centroids"] for of in (run, distilled)]
    assert units[0].shape == (5, 24)
    assert units[0].equal(units[1])


def test_a_folder_with_another_tokenizer_teaches_states_alone(distilled, make_distilled):
    run = make_distilled("strange")
    recipe = load_recipe(run.recipe_file)
    stage, pieces = recipe.training_stage(STAGE), Tokenizer.load(run.tokenizer).pieces
    device = torch.device("cpu")
    named_teachers, _ = load_teachers(StageContext(recipe, run, stage), pieces, device)
    assert "sequence" in named_teachers[0].terms
    others = [*pieces[:-1], "another"]
    with pytest.raises(ConfigError, match=r"compares tokens with its teacher .* in distill\.ctc"):
        load_teachers(StageContext(recipe, run, stage), others, device)
    states = stage.named_teachers[0].model_copy(update={"terms": ("hidden", "units")})
    stage = stage.model_copy(update={"teachers": (states,)})
    named_teachers, _ = load_teachers(StageContext(recipe, run, stage), others, device)
    assert named_teachers[0].terms == {"hidden", "units"}
    assert not named_teachers[0].teacher.same_tokens


def test_what_a_batch_was_made_from_is_kept_where_it_is_asked_for(distilled):
    recipe, device = load_recipe(distilled.recipe_file), torch.device("cpu")
    lanes = range(recipe.batches.lanes)
    context = StageContext.training(recipe, distilled, STAGE)
    inputs = open_inputs(context, "train", lanes, device, recipe.augment)
    batch = next(inputs.steps(0, 1))[0]
    assert inputs.micro_batch(batch).source is None
    inputs.keeps_source = True
    heard = inputs.micro_batch(batch)
    source = heard.source
    assert source.waveforms_BS.equal(batch.waveforms_BS)
    assert source.masked_BT.any()
    assert not heard.features_BTF[source.masked_BT].any()
    assert source.features_BTF[source.masked_BT].any()
    shown = heard.features_BTF != 0
    assert heard.features_BTF[shown].equal(source.features_BTF[shown])
