"""A finished model adapted by real processes: what is left, what is kept, and on how many processes it is the same."""

import json
import shutil
from pathlib import Path

import processes
import pytest
import torch
import yaml
from conftest import write_recipe
from safetensors.torch import save_file
from small_runs import STAGE, write_teacher

from launcher.cli import main
from launcher.errors import CheckpointError
from launcher.inference.adapted_model import with_adapter
from launcher.inference.finished_model import FinishedModel
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json
from launcher.stages.context import StageContext
from launcher.tracking import read_metrics
from launcher.training.adaptation import write_adapted_model
from launcher.training.checkpoint import averaging, open_checkpoint
from model.adapter_files import read_adapter
from model.export import load_model

STEPS = 6
ADAPT = {"method": "bottleneck", "rank": 2, "norms": True, "max_trained_share": 0.2, "max_degradation": 1.0}


@pytest.fixture(scope="module")
def make_adapted(make_run, shards, tmp_path_factory):
    """Makes runs that adapt one student; `changes` are recipe overrides."""
    base = tmp_path_factory.mktemp("base") / "model"

    def make(name: str, *changes: str) -> RunFolder:
        run = make_run(name)
        start = yaml.safe_load((run.path / "start.yaml").read_text())
        if not base.exists():
            write_teacher(run, base)
        stage = start["stages"][0]
        del stage["model"]
        stage |= {"kind": "adapt", "base": str(base), "steps": STEPS, "log_every": 1, "validate_every": 3}
        stage |= {"checkpoint": {"every_steps": 3, "keep_last": 9}}
        stage["adapt"] = {**ADAPT, "keep_split": str(shards / "dev")}
        (run.path / "start.yaml").write_text(yaml.safe_dump(start))
        write_recipe(run, changes)
        # What an adaptation needs it has from its base.
        shutil.rmtree(run.tokenizer)
        return run

    return make


def train(run: RunFolder, world: int) -> None:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")


def rows(run: RunFolder, key: str) -> dict[int, dict]:
    return {row["step"]: row for row in read_metrics(run.stage(STAGE).metrics_file) if key in row}


@pytest.fixture(scope="module")
def adapted(make_adapted) -> RunFolder:
    run = make_adapted("adapted")
    train(run, 2)
    return run


def context_of(run: RunFolder) -> StageContext:
    recipe = load_recipe(run.recipe_file, of_run=True)
    return StageContext(recipe, run, recipe.training_stage(STAGE))


def test_what_is_left_is_a_model_and_a_small_adapter_that_makes_it_of_the_base(adapted):
    folder = adapted.stage(STAGE)
    base_folder = Path(context_of(adapted).stage.base)
    base = load_model(base_folder)
    model = load_model(folder.model)
    adapter = read_adapter(folder.adapter)
    # Frozen weights are those of the base to the bit; adapters, norms and routers have moved.
    changed = set()
    for name, tensor in model.state_dict().items():
        if name not in base.state_dict() or not torch.equal(tensor, base.state_dict()[name]):
            changed.add(name)
    assert set(adapter.state) == changed
    assert all(".adapters." in name or "norm" in name or ".router." in name for name in changed)
    assert any(name.endswith("adapters.feedforward2.up.weight") for name in changed)
    assert any(name.endswith("router.weight") for name in changed)
    with with_adapter(base_folder, str(folder.path)) as both:
        again = load_model(both)
        assert FinishedModel.load(both).tokenizer.pieces == FinishedModel.load(folder.model).tokenizer.pieces
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    facts = json.loads((folder.adapter / "adapter.json").read_text())
    assert facts["method"] == "bottleneck"
    assert facts["values"] == sum(tensor.numel() for tensor in adapter.state.values())
    assert (folder.adapter / "adapter.safetensors").stat().st_size < 0.4 * (
        folder.model / "model.safetensors"
    ).stat().st_size


def test_the_former_domain_is_measured_before_the_first_step_and_beside_dev(adapted):
    (event,) = [event for event in adapted.events() if event["event"] == "keep_measured"]
    assert event["step"] == 0
    validated = rows(adapted, "validation/cer")
    assert set(validated) == {3, 6}
    for row in validated.values():
        # Here both splits are the same, and their batches too.
        assert row["validation/keep_cer"] == pytest.approx(row["validation/cer"])
    saved = open_checkpoint(adapted.stage(STAGE))
    assert saved.trainer["keep"] == {"base_cer": event["cer"]}
    (frozen,) = [event for event in adapted.events() if event["event"] == "frozen"]
    assert 0 < frozen["all_values"] - frozen["values"] < 0.2 * frozen["all_values"]


@pytest.mark.parametrize(
    ("world", "deepspeed"),
    [
        (1, "zero1"),
        # All experts are frozen, and spread.
        pytest.param(2, "zero1", marks=pytest.mark.slow),
        pytest.param(2, "zero3", marks=pytest.mark.slow),
    ],
)
def test_an_adaptation_that_goes_on_elsewhere_is_the_same(adapted, make_adapted, world, deepspeed):
    run = make_adapted(f"moved-{world}-{deepspeed}")
    source, target = adapted.stage(STAGE), run.stage(STAGE)
    target.checkpoints.mkdir(parents=True)
    shutil.copytree(source.checkpoint(3), target.checkpoint(3))
    write_recipe(
        run,
        (f"cluster.processes={world}", f"cluster.expert_parallel={world}", f"cluster.deepspeed={deepspeed}"),
    )
    train(run, world)
    expected = rows(adapted, "loss")
    for step, row in rows(run, "loss").items():
        assert row["loss"] == pytest.approx(expected[step]["loss"], rel=1e-4)
    # What was measured before the first step came with the checkpoint.
    assert not [event for event in run.events() if event["event"] == "keep_measured"]
    moved = load_model(target.model).state_dict()
    for name, tensor in load_model(source.model).state_dict().items():
        assert torch.allclose(moved[name], tensor, atol=1e-4), name


def test_the_model_is_of_the_best_checkpoint_that_keeps_what_is_to_be_kept(adapted, monkeypatch):
    """The rates are set in the place where manifests are read: a changed file would count as damaged."""
    rates: dict[int, float | None] = {3: 0.2, 6: 0.1}

    def read(folder):
        return {"validation_cer": rates[int(folder.name[-8:])]}

    monkeypatch.setattr(averaging, "read_manifest", read)
    context = context_of(adapted)
    chosen = []
    for rates_of_steps in ({3: 0.2, 6: 0.1}, {3: 0.1, 6: 0.1}, {3: 0.3, 6: None}):
        rates.update(rates_of_steps)
        write_adapted_model(context)
        chosen.append(json.loads((context.folder.adapter / "adapter.json").read_text())["steps"])
    assert chosen == [[6], [6], [3]]
    rates.update({3: None, 6: None})
    with pytest.raises(CheckpointError, match=r"no checkpoint that keeps what the model could do: on .*shards.*/dev"):
        write_adapted_model(context)


def test_an_export_is_merged_and_gives_the_same_texts(adapted, tmp_path):
    write_json(adapted.state_file, {"format": 1, "recipe": "small", "stages": {}})
    out = tmp_path / "merged"
    stage = f"{adapted.path}/{STAGE}"
    assert main(["export", stage, "--out", str(out)]) == 0
    merged = FinishedModel.load(out)
    assert merged.recognizer.config.encoder.adapters is None
    # One block served both layers, which have one each now.
    assert merged.recognizer.config.encoder.num_blocks == 2
    model = FinishedModel.load(adapted.stage(STAGE).model)
    features = torch.randn(1, 60, model.recognizer.mel_bins)
    with torch.no_grad():
        expected = model.recognizer(features, torch.tensor([60])).ctc_BSV
        assert torch.allclose(merged.recognizer(features, torch.tensor([60])).ctc_BSV, expected, atol=1e-5)

    base = context_of(adapted).stage.base
    again = tmp_path / "again"
    assert main(["export", base, "--adapter", stage, "--out", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_an_adapter_of_another_model_is_refused_in_one_paragraph(adapted, make_adapted, tmp_path, capsys):
    run = make_adapted("another")
    other = tmp_path / "other/model"
    shutil.copytree(context_of(adapted).stage.base, other)
    model = load_model(other)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["ctc.bias"] += 1
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    out = str(tmp_path / "out")
    assert main(["export", str(other), "--adapter", str(adapted.stage(STAGE).adapter), "--out", out]) == 4
    message = capsys.readouterr().err
    assert "cannot be used with the model in" in message
    assert "\n\n" not in message.strip()
    assert main(["export", str(other), "--adapter", str(run.path), "--out", out]) == 4
    assert "holds no adapter" in capsys.readouterr().err
