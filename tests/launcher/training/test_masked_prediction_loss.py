"""A stage that learns without transcripts, on real processes: on any number of them, stopped on the way, as a start."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
import yaml
from conftest import write_recipe
from safetensors.torch import load_file
from small_runs import SPLITS, recipe_values

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.errors import DataError
from data.features import measure_statistics
from data.masking import fully_masked_frames
from data.shards.reader import ShardReader
from data.shards.writer import read_index, write_split
from launcher.cli import main
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.evaluation import evaluate_model
from launcher.inference.finished_model import FinishedModel
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.recipe import PretrainStage, SelfSupervisedStage, check_inputs, load_recipe
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.stages.context import StageContext
from launcher.tracking import read_metrics
from launcher.training.initialization import initialize_from_model
from launcher.training.inputs import open_inputs
from model.export import load_encoder
from model.recognizer import Recognizer, RecognizerConfig

STAGE = "listener"
ONE_PROCESS = ("cluster.processes=1", "cluster.expert_parallel=1")
TIMES = {"time", "step_s", "data_wait", "audio_s_per_s", "flops_per_s", "validation_s", "save_stall_s"}


def write_shards(folder: Path, labelled_every: int) -> Path:
    """Some phrases of the embedded corpus of which every so many has its transcript; 0: none."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    for split, number in SPLITS.items():
        utterances = [utterance for utterance in selected if utterance.split == split][:number]
        mixed = [
            utterance if labelled_every and place % labelled_every == 0 else replace(utterance, text="")
            for place, utterance in enumerate(utterances)
        ]
        write_split(mixed, folder / split, sample_rate_hz=16000, shard_seconds=20, seed=1, workers=1)
    return folder


def listening(shards: Path) -> dict:
    """The small recipe with a stage in place of its student that hears what the student would hear."""
    values = recipe_values(shards)
    student = values["stages"][0]
    encoder = student["model"]["encoder"] | {"dropout": 0.1}
    listener = student | {
        "name": STAGE,
        "kind": "self_supervised",
        "model": {"encoder": encoder, "quantizer": {"codebooks": 2, "codes": 32}},
        "masking": {"start_probability": 0.02},
        "steps": 10,
        "log_every": 2,
        "validate_every": 5,
    }
    return values | {"stages": [listener]}


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    """Shards without a single transcript."""
    return write_shards(tmp_path_factory.mktemp("silent"), labelled_every=0)


@pytest.fixture(scope="module")
def make_listener(silent, tmp_path_factory) -> Callable[..., RunFolder]:
    """Makes run folders of the stage alone: with statistics of the features, and no tokenizer."""

    def make(name: str, *changes: str) -> RunFolder:
        run = RunFolder(tmp_path_factory.mktemp(name))
        (run.path / "start.yaml").write_text(yaml.safe_dump(listening(silent)))
        write_recipe(run, changes)
        recipe, index = load_recipe(run.recipe_file), read_index(silent / "train")
        mean, std = measure_statistics(ShardReader(index), recipe.features, recipe.seed, utterances=20)
        write_json(run.statistics_file, {"mean": mean.tolist(), "std": std.tolist()})
        return run

    return make


def start(run: RunFolder, world: int) -> list:
    return processes.start(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")


def finish(run: RunFolder, started: list) -> None:
    codes = [process.wait(240) for process in started]
    assert codes == [0] * len(codes), (run.path / "log").read_text()[-6000:]


def stop_at(run: RunFolder, world: int, step: int) -> None:
    """Train until a row of `step` is written, then ask for a stop."""
    started, until = start(run, world), time.monotonic() + 200
    while not any(row["step"] >= step for row in read_metrics(run.stage(STAGE).metrics_file)):
        assert time.monotonic() < until, (run.path / "log").read_text()[-6000:]
        assert all(process.poll() is None for process in started), (run.path / "log").read_text()[-6000:]
        time.sleep(0.01)
    run.stage(STAGE).stop_file.touch()
    finish(run, started)
    run.stage(STAGE).stop_file.unlink()


def rows(run: RunFolder) -> list[dict]:
    measured = read_metrics(run.stage(STAGE).metrics_file)
    found = [{name: value for name, value in row.items() if name not in TIMES} for row in measured]
    return [row for row in found if row.keys() != {"step"} and not any(name.startswith("goodput/") for name in row)]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.stage(STAGE).model / "model.safetensors")


@pytest.fixture(scope="module")
def alone(make_listener) -> RunFolder:
    """Trained by one process, undisturbed."""
    run = make_listener("alone", *ONE_PROCESS)
    finish(run, start(run, 1))
    return run


def test_rows_tell_how_much_is_predicted_and_how_evenly_codes_are_used(alone):
    steps = [row for row in rows(alone) if "loss" in row]
    validations = [row for row in rows(alone) if "validation/loss" in row]
    assert [row["step"] for row in steps] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in validations] == [5, 10]
    for row in steps:
        assert row["loss"] == pytest.approx(row["loss/masked"] + row["loss/balance"], rel=1e-6)
        assert 0 <= row["masked_accuracy"] < 0.6
        assert 0.5 < row["code_entropy"] <= 1
    for row in validations:
        assert "validation/cer" not in row
        assert 0 <= row["validation/masked_accuracy"] < 0.6
        assert 0.5 < row["validation/code_entropy"] <= 1
    assert steps[-1]["loss/masked"] < steps[0]["loss/masked"]
    assert read_json(alone.stage(STAGE).done_file) == {"status": "done", "step": 10}


def test_a_training_that_is_stopped_and_goes_on_is_the_training_that_was_not(alone, make_listener):
    run = make_listener("stopped", *ONE_PROCESS)
    stop_at(run, 1, step=4)
    finish(run, start(run, 1))
    assert rows(run) == rows(alone)
    for name, values in weights(alone).items():
        assert values.equal(weights(run)[name]), name


@pytest.mark.parametrize("deepspeed", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_it_is_the_same_on_two_processes_that_share_experts_and_may_move_to_one(alone, make_listener, deepspeed):
    """Losses are over the masked frames of all lanes: divided by those of one process they would differ at once."""
    run = make_listener(f"moved-{deepspeed}", f"cluster.deepspeed={deepspeed}")
    stop_at(run, 2, step=4)
    write_recipe(run, ONE_PROCESS)
    finish(run, start(run, 1))
    assert len(rows(run)) == len(rows(alone))
    for row, expected in zip(rows(run), rows(alone), strict=True):
        assert row.keys() == expected.keys()
        for name in expected.keys() & {"loss", "loss/masked", "code_entropy", "validation/loss", "grad_norm"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4), (row["step"], name)


def test_the_model_that_is_left_is_the_encoder_alone(alone, tmp_path, capsys):
    names = weights(alone).keys()
    assert names
    assert all(name.startswith("encoder.") for name in names)
    assert not (alone.stage(STAGE).model / "tokenizer").exists()
    write_json(alone.state_file, {"format": 1, "recipe": "small", "stages": {}})
    assert main(["export", f"{alone.path}/{STAGE}", "--step", "10", "--out", str(tmp_path / "out")]) == 0
    for name, values in load_encoder(tmp_path / "out").state_dict().items():
        assert values.equal(weights(alone)[f"encoder.{name}"]), name
    with pytest.raises(CheckpointError, match="no recogniser"):
        FinishedModel.load(alone.stage(STAGE).model)
    with pytest.raises(ConfigError, match=r"Stage student: its teacher is an encoder .* no recogniser"):
        check_inputs(load_recipe("mini", [f"stages.student.teacher={alone.stage(STAGE).model}"]))
    capsys.readouterr()


@pytest.mark.parametrize("num_layers", [None, 0])
def test_a_stage_starts_as_all_of_it_or_as_its_lowest_layers(alone, num_layers):
    recipe, start = load_recipe(alone.recipe_file), load_encoder(alone.stage(STAGE).model)
    model = RecognizerConfig(encoder=start.config)
    changes = {"initialize_from": STAGE, "initialize_layers": num_layers}
    stage = PretrainStage(name="student", kind="pretrain", steps=1, model=model, **changes)
    recognizer = Recognizer(model, recipe.features.mel_bins, 20)
    initialize_from_model(recognizer, StageContext(recipe, alone, stage), pieces=[])
    assert recognizer.encoder.subsampling.first.weight.equal(start.subsampling.first.weight)
    for mine, its in zip(recognizer.encoder.blocks, start.blocks, strict=True):
        assert mine.attention.output.weight.equal(its.attention.output.weight) == (num_layers is None)


def test_masked_frames_of_a_step_are_counted_over_all_lanes_before_they_are_read(alone):
    recipe = load_recipe(alone.recipe_file)
    stage = recipe.training_stage(STAGE)
    assert isinstance(stage, SelfSupervisedStage)
    lanes, device = tuple(range(recipe.batches.lanes)), torch.device("cpu")
    inputs = open_inputs(StageContext(recipe, alone, stage), "train", lanes, device, recipe.augment)
    for step, batches in enumerate(inputs.steps(0, 3)):
        masked = [inputs.micro_batch(batch) for batch in batches]
        predicted = [fully_masked_frames(one.source.masked_BT, one.lengths_B, 4) for one in masked]
        assert inputs.totals(step).masked == sum(int(predicted_BS.sum()) for predicted_BS in predicted) > 0
        for one in masked:
            changed_BT = (one.features_BTF != one.source.features_BTF).any(-1)
            assert changed_BT.any()
            assert changed_BT.equal(one.source.masked_BT)
            assert not changed_BT[torch.arange(changed_BT.shape[1]) >= one.lengths_B[:, None]].any()
            # Not a band of it is silenced, as SpecAugment would: what is to be predicted is what was said.
            assert (one.source.features_BTF != 0)[torch.arange(changed_BT.shape[1]) < one.lengths_B[:, None]].all()


def test_the_plan_counts_such_a_stage(alone):
    recipe = load_recipe(alone.recipe_file)
    numbers = plan_table(recipe, alone, [1], machine_of(recipe.cluster, [1]))["stages"][STAGE]
    assert numbers["parts"]["heads"]["unique"] == 64 * 33
    assert numbers["memory_bytes"]["activations"] is None
    assert 0 < numbers["encoder_operations_per_s"] < numbers["operations_per_s"] < numbers["training_operations_per_s"]


def test_a_run_listens_to_everything_and_then_learns_from_the_transcripts_there_are(silent, tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", labelled_every=2)
    values = listening(shards)
    student = recipe_values(shards)["stages"][0] | {"initialize_from": STAGE, "steps": 2, "log_every": 1}
    student["freeze"] = ["encoder.subsampling"]
    evaluation = {"name": "evaluation", "kind": "evaluate", "models": ["student"], "split": "dev"}
    values |= {"stages": [values["stages"][0] | {"steps": 4}, student, evaluation], "tokenizer": {"kind": "char"}}
    recipe_file, run = tmp_path / "recipe.yaml", RunFolder(tmp_path / "run")
    recipe_file.write_text(yaml.safe_dump(values))
    command = [str(recipe_file), "--run-dir", str(run.path), *(f"--set={change}" for change in ONE_PROCESS)]
    assert main(["run", *command]) == 0
    output = capsys.readouterr()
    assert "listener: learns from recordings alone for 4 steps" in output.out + output.err
    opened = [event for event in run.events() if event["event"] == "plan_opened" and event["split"] == "train"]
    assert [event["excluded"].get("without a transcript", 0) for event in opened] == [0, SPLITS["train"] // 2]
    (started,) = [event for event in run.events() if event["event"] == "initialized"]
    assert started["copied"] == ["encoder"]
    assert started["drawn"]["ctc"] == "the model is an encoder alone"
    (frozen,) = [event for event in run.events() if event["event"] == "frozen"]
    assert 0 < frozen["values"] < frozen["all_values"]
    listener, learner = (load_encoder(run.stage(name).model) for name in (STAGE, "student"))
    assert learner.subsampling.first.weight.equal(listener.subsampling.first.weight)
    attention = [encoder.blocks[0].attention.output.weight for encoder in (listener, learner)]
    assert not attention[0].equal(attention[1])
    assert read_json(run.features_file) == read_json(run.statistics_file)
    assert read_json(run.results_file)["models"]["student"]["dev"]["utterances"] == SPLITS["dev"] // 2
    assert "of masked frames predicted at best" in run.report_file.read_text()

    with pytest.raises(DataError, match=r"None of the 4 utterances at .* has a transcript"):
        evaluate_model(FinishedModel.load(run.stage("student").model), silent / "dev", "dev", lambda done: None)

    assert main(["plan", *command, "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert all(stage["done"] for stage in stages.values())
    assert list(stages) == ["prepare", "features", "tokenizer", STAGE, "student", "evaluation", "report"]
    for change, expected in (
        (f"stages.{STAGE}.masking.span_s=0.2", [STAGE, "student", "evaluation", "report"]),
        ("tokenizer.kind=bpe", ["tokenizer", "student", "evaluation", "report"]),
    ):
        assert main(["plan", *command, f"--set={change}", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["stages"]
        assert [stage["name"] for stage in found if not stage["done"]] == expected
