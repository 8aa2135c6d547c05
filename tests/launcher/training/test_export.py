"""`chorus export`: any checkpoint of a training on several processes becomes a model in one."""

import json
import shutil

import processes
import pytest
import torch
from small_runs import STAGE

from launcher.cli import main
from launcher.inference.finished_model import FinishedModel
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json
from launcher.stages.context import StageContext
from launcher.stages.pipeline import Pipeline
from launcher.tracking import read_metrics
from launcher.training.inputs import Inputs, open_inputs
from launcher.training.recognition_loss import RecognitionLoss
from model.recognizer import Recognizer

CHANGES = ("steps=4", "log_every=1", "validate_every=2", "checkpoint.every_steps=2")
# Tensors that layers share outside of blocks, and experts in more than one place.
SHARING = ("norms=group", "experts.placement=both", "experts.residual=true", "experts.capacity_factor=1.0")
ROUTER = ("scope=conditioned", "bias_rate=0.01")


@pytest.fixture(scope="module")
def trained(make_run) -> RunFolder:
    """Four steps on two processes that share the experts, with checkpoints of steps 2 and 4, both validated."""
    encoder = [*SHARING, *(f"experts.router.{change}" for change in ROUTER)]
    changes = [*CHANGES, *(f"model.encoder.{change}" for change in encoder)]
    run = make_run("exported", tuple(f"stages.{STAGE}.{change}" for change in changes))
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], 2, run.path / "log")
    write_json(run.state_file, {"format": 1, "recipe": "small", "stages": {}})
    return run


def dev_inputs(run: RunFolder) -> Inputs:
    recipe = load_recipe(run.recipe_file)
    lanes = range(recipe.batches.lanes)
    return open_inputs(StageContext.training(recipe, run, STAGE), "dev", lanes, torch.device("cpu"))


@torch.no_grad()
def validation_loss(run: RunFolder, recognizer: Recognizer) -> float:
    """What the training measured as validation/loss, measured with a model in this process."""
    stage, inputs = load_recipe(run.recipe_file).training_stage(STAGE), dev_inputs(run)
    task, num_steps, sum_of_losses = (
        RecognitionLoss(stage.objective, stage.model.encoder),
        inputs.sampler.steps_per_epoch,
        0.0,
    )
    for batches in inputs.steps(0, num_steps):
        for batch in batches:
            parts, _ = task(recognizer, inputs.micro_batch(batch), inputs.sampler.totals(batch.step), 1.0)
            sum_of_losses += sum(float(part) for part in parts.values())
    return sum_of_losses / num_steps


@torch.no_grad()
def logits(run: RunFolder, recognizer: Recognizer) -> list[torch.Tensor]:
    inputs = dev_inputs(run)
    batches = [inputs.micro_batch(batch) for step in inputs.steps(0, 1) for batch in step]
    return [recognizer(batch.features_BTF, batch.lengths_B).ctc_BSV for batch in batches]


def test_work_that_was_set_aside_is_exported_with_its_own_settings(trained, tmp_path, capsys):
    recipe = load_recipe(trained.recipe_file)
    pipeline = Pipeline(recipe, trained)
    node = next(node for node in pipeline.nodes if node.name == STAGE)
    # Its own, as the recipe may have others by now: here a front-end that the recipe does not have.
    settings = node.settings.values | {"features": recipe.features.model_dump(mode="json") | {"low_hz": 30.0}}
    record = {"kind": "pretrain", "status": "stopped", "fingerprint": "", "settings": settings, "inputs": {}}
    aside = trained.stage(f"{STAGE}.old-1")
    shutil.copytree(trained.stage(STAGE).path, aside.path)
    write_json(aside.record_file, record)
    out = tmp_path / "model"
    assert main(["export", str(aside.path), "--out", str(out), "--json"]) == 0
    assert FinishedModel.load(out).features.config.low_hz == 30.0

    write_json(aside.record_file, record | {"inputs": {"tokenizer": "another"}})
    assert main(["export", str(aside.path), "--out", str(tmp_path / "other")]) == 4
    assert "another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("step", [2, 4])
def test_an_exported_model_is_the_one_that_was_trained(trained, tmp_path, step, capsys):
    out = tmp_path / "model"
    assert main(["export", f"{trained.path}/{STAGE}", "--step", str(step), "--out", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"] == str(out)
    assert row["step"] == step
    measured = {
        row["step"]: row["validation/loss"]
        for row in read_metrics(trained.stage(STAGE).metrics_file)
        if "validation/loss" in row
    }
    # fp32 sums over other orders of frames and lanes.
    assert validation_loss(trained, FinishedModel.load(out).recognizer) == pytest.approx(measured[step], rel=1e-5)
    assert measured[2] != pytest.approx(measured[4], rel=1e-4)


def test_rows_name_every_place_of_experts_and_the_share_that_was_dropped(trained):
    row = next(row for row in read_metrics(trained.stage(STAGE).metrics_file) if "loss" in row)
    for name in ("layer-00-first", "layer-00-second", "layer-01-first", "layer-01-second"):
        assert sum(row[f"experts/{name}/load"]) == pytest.approx(1.0)
        assert 0 < row[f"experts/{name}/dropped"] < 0.5


def test_the_bias_of_a_shared_router_is_moved_once_per_step(trained):
    """Towards the expert that had less of the frames of all layers and lanes in that step."""
    common = FinishedModel.load(trained.stage(STAGE).model).recognizer.encoder.common
    rows = [row for row in read_metrics(trained.stage(STAGE).metrics_file) if "loss" in row]
    assert len(rows) == 4
    routers = {"first": common.feedforward1_router, "second": common.router}
    assert any(router.bias.any() for router in routers.values())
    for place, router in routers.items():
        loads_SLE = torch.tensor([[row[f"experts/layer-{layer:02}-{place}/load"] for layer in (0, 1)] for row in rows])
        expected_E = 0.01 * torch.sign(0.5 - loads_SLE.mean(1)).sum(0)
        torch.testing.assert_close(router.bias, expected_E, rtol=0, atol=1e-6)


def test_the_newest_checkpoint_is_exported_by_default_and_has_the_logits_of_the_stages_own_model(trained, capsys):
    assert main(["export", f"{trained.path}/{STAGE}"]) == 0
    exported = FinishedModel.load(trained.stage(STAGE).export(4))
    assert capsys.readouterr().out.strip() == str(trained.stage(STAGE).export(4))
    own = FinishedModel.load(trained.stage(STAGE).model)
    for ours, theirs in zip(logits(trained, exported.recognizer), logits(trained, own.recognizer), strict=True):
        assert ours.equal(theirs)


def test_an_average_of_checkpoints_is_exported_and_is_the_mean_of_their_models(trained, tmp_path, capsys):
    models = []
    for step in (2, 4):
        out = tmp_path / str(step)
        assert main(["export", f"{trained.path}/{STAGE}", "--step", str(step), "--out", str(out)]) == 0
        models.append(FinishedModel.load(out).recognizer.state_dict())
    capsys.readouterr()
    out = tmp_path / "average"
    assert main(["export", f"{trained.path}/{STAGE}", "--average", "last:2", "--out", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"] == str(out)
    assert row["step"] == 4
    assert row["average"] == {"kind": "last", "steps": [2, 4]}
    average = FinishedModel.load(out).recognizer.state_dict()
    for name, values in average.items():
        expected = (models[0][name].double() + models[1][name].double()) / 2
        assert torch.equal(values, expected.float()), name


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--average", "mean:3"], 2, "kind"),
        (["--average", "last:one"], 2, "checkpoints"),
        (["--average", "last:2", "--step", "0"], 4, "is intact, up to step 0"),
        (["--average", "last:2", "--format", "onnx"], 2, "Make it first"),
        (["--average", "running"], 4, "holds no running average"),
    ],
)
def test_an_average_that_cannot_be_made_is_said_in_one_paragraph(trained, capsys, options, code, message):
    assert main(["export", f"{trained.path}/{STAGE}", *options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("chorus:") == 1


def test_a_damaged_newest_checkpoint_is_passed_over_unless_it_is_asked_for(trained, tmp_path, capsys):
    part = trained.stage(STAGE).checkpoint(4) / "rank-00001.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    try:
        command = ["export", f"{trained.path}/{STAGE}", "--out", str(tmp_path / "model")]
        assert main([*command, "--step", "4"]) == 4
        assert "it was cut short" in capsys.readouterr().err
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["step"] == 2
    finally:
        part.write_bytes(content)


def test_what_cannot_be_exported_is_said_in_one_paragraph(trained, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for arguments, code, fragment in (
        ((f"{trained.path}/{STAGE}", "--step", "3"), 4, "are of steps 2, 4"),
        ((f"{trained.path}/{STAGE}", "--out", str(tmp_path)), 2, "is there already"),
        ((f"{trained.path}/teacher",), 2, "no stage 'teacher'"),
        ((str(tmp_path / "student"),), 4, "holds no finished model"),
        ((str(tmp_path / "student"), "--step", "2"), 2, "not a run folder"),
    ):
        assert main(["export", *arguments]) == code
        message = capsys.readouterr().err
        assert fragment in message
        assert message.count("\n") == 1
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
