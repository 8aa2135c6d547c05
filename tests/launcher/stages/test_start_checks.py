"""What a recipe asks of its shards is refused, or said, before days of training."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import yaml

from data.corpora import prepare
from data.corpora.folder import FolderConfig
from data.errors import DataError
from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.monitoring.progress import PlainDisplay
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.pipeline import Pipeline, StageStatus
from launcher.stages.preparation import prepare_corpus
from launcher.stages.start_checks import batches_of_one, check_prepared, check_splits, check_start, no_validation

SPLITS = {"train": 6, "dev": 2, "test": 2, "test_noisy": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a manifest and, under `corpus`, its shards: eleven utterances of a second of noise."""
    folder = tmp_path_factory.mktemp("prepared")
    noise = np.random.default_rng(1)
    rows = []
    for split, number in SPLITS.items():
        for index in range(number):
            name = f"{split}-{index}.wav"
            soundfile.write(folder / name, 0.1 * noise.standard_normal(16000), 16000)
            rows.append({"audio": name, "text": f"{split} says word number {'a' * index}", "split": split})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(FolderConfig(manifest=manifest), folder / "corpus", seed=1)
    return folder


@pytest.fixture
def recipe_of(tmp_path):
    """Write `mini` on shards in a folder of the test, with overrides, and return the recipe."""

    def recipe(*overrides):
        return load_recipe("mini", [f"corpus={{shards: {tmp_path}/corpus}}", *overrides])

    return recipe


@pytest.fixture
def shards(prepared, tmp_path):
    return shutil.copytree(prepared / "corpus", tmp_path / "corpus")


@pytest.mark.parametrize(
    ("split", "remedy"),
    [
        ("tset", "did you mean 'test'? There are: dev, test, test_noisy, train."),
        ("test_nosy", "did you mean 'test_noisy'?"),
        ("Test", "here it is called test. Pass --set stages.evaluation.split=test"),
        ("valid", "here it is called dev. Pass --set stages.evaluation.split=dev"),
        ("training", "here it is called train"),
        ("eval", "There are: dev, test, test_noisy, train."),
    ],
)
def test_a_misspelt_split_is_refused_before_anything_starts(shards, recipe_of, tmp_path, split, remedy):
    recipe = recipe_of(f"stages.evaluation.split={split}")
    with pytest.raises(ConfigError) as error:
        check_prepared(recipe, RunFolder(tmp_path / "run"))
    assert f"stages.evaluation.split is '{split}'" in str(error.value)
    assert remedy in str(error.value)


def test_a_missing_train_split_is_named_with_what_is_there(shards, recipe_of, tmp_path):
    (shards / "train").rename(shards / "Train")
    with pytest.raises(DataError, match=r"has no split train.*There are: Train, dev, test, test_noisy\. Rename Train"):
        check_splits(recipe_of(), RunFolder(tmp_path))
    shutil.rmtree(shards / "Train")
    with pytest.raises(DataError, match="Give rows of the corpus the split train"):
        check_splits(recipe_of(), RunFolder(tmp_path))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_run_and_plan_refuse_a_misspelt_split_alike(shards, tmp_path, capsys, command):
    run = tmp_path / "run"
    options = ["--set", f"corpus={{shards: {shards}}}", "--set", "stages.evaluation.split=tset"]
    assert chorus([command, "mini", "--run-dir", str(run), *options]) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("overrides", "code", "fragment"),
    [
        (
            ["corpus={name: folder, manifest: /nowhere/m.jsonl}"],
            3,
            "corpus.manifest of recipe mini is /nowhere/m.jsonl",
        ),
        (["corpus={name: fsdd, root: /nowhere}"], 3, "corpus.root of recipe mini is /nowhere"),
        (["corpus={shards: /nowhere}"], 3, "/nowhere/train"),
        (["stages.student.teacher=/nowhere/model"], 4, "The teacher of stage student is the folder /nowhere/model"),
        (["stages.teacher.initialize_from=/nowhere/model"], 4, "The encoder that stage teacher starts from"),
        (
            ["stages.evaluation.search={kind: prefix_beam, hotwords: {path: /nowhere/words}}"],
            3,
            "stages.evaluation.search.hotwords.path is /nowhere/words",
        ),
    ],
)
def test_run_and_plan_refuse_files_that_are_not_there_alike(tmp_path, capsys, command, overrides, code, fragment):
    settings = [part for override in overrides for part in ("--set", override)]
    assert chorus([command, "mini", "--run-dir", str(tmp_path / "run"), *settings]) == code
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_misspelt_split_ends_the_preparation_and_not_the_trainings(prepared, tmp_path, capsys):
    corpus = f"corpus={{name: folder, manifest: {prepared}/manifest.jsonl}}"
    recipe = load_recipe("mini", [corpus, "stages.evaluation.split=tset"])
    run = RunFolder(tmp_path / "run")
    # Nothing is known yet, and nothing refused.
    check_prepared(recipe, run)
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        prepare_corpus(recipe, run, PlainDisplay(None))

    mended = load_recipe("mini", [corpus])
    pipeline = Pipeline(mended, run)
    node = pipeline.nodes[0]
    pipeline.started(node, pipeline.status_of(node))
    prepare_corpus(mended, run, PlainDisplay(None))
    pipeline.ended(node, "done")
    check_prepared(mended, run)
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        check_prepared(recipe, run)


def test_a_run_that_can_never_validate_says_so_once(shards, recipe_of, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    assert no_validation(recipe_of(), run) == ""
    (shards / "dev").rename(shards / "valid")
    sentence = no_validation(recipe_of(), run)
    assert "no split dev: nothing is ever validated, whatever validate_every says; rename the split valid" in sentence
    shutil.rmtree(shards / "valid")
    assert "give some rows the split dev" in no_validation(recipe_of(), run)

    options = ["mini", "--run-dir", str(run.path), "--set", f"corpus={{shards: {shards}}}", "--json"]
    assert chorus(["plan", *options]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [warning["kind"] for warning in warnings].count("no_validation") == 1


@pytest.mark.parametrize(
    ("batches", "alone"),
    [
        ("{lanes: 2, seconds: 0.5}", True),
        ("{lanes: 2, seconds: 1.7}", True),
        ("{lanes: 2, seconds: 3}", False),
        ("{lanes: 2, seconds: 60}", False),
        ("{lanes: 2, seconds: 3, attention_s: 0.5}", True),
        # Every utterance is excluded: that is for the sampler to say.
        ("{lanes: 2, seconds: 0.5, max_utterance_s: 0.5}", False),
    ],
)
def test_batches_that_hold_one_utterance_are_said_to(shards, recipe_of, tmp_path, batches, alone):
    recipe = recipe_of(f"batches={batches}", "augment.speeds=[1.0, 1.1]")
    sentence = batches_of_one(recipe, RunFolder(tmp_path), recipe.training_stage("teacher"))
    assert bool(sentence) == alone
    if alone:
        seconds = yaml.safe_load(batches)["seconds"]
        assert sentence.startswith(f"Every micro-batch holds one utterance: batches.seconds is {seconds}")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_run_and_plan_refuse_a_learning_rate_of_0_alike(tmp_path, capsys, command):
    run = tmp_path / "run"
    change = "stages.student.optimizer={schedule: tri_stage, final_ratio: 0}"
    assert chorus([command, "mini", "--run-dir", str(run), "--set", change]) == 2
    assert "stages.student.optimizer.final_ratio is 0, and the schedule tri_stage" in capsys.readouterr().err
    assert not run.exists()


def test_a_stage_that_was_trained_with_such_an_optimizer_stays_of_use(tmp_path):
    recipe = load_recipe("mini", ["stages.teacher.optimizer={schedule: tri_stage, final_ratio: 0}"])
    run = RunFolder(tmp_path)
    pipeline = Pipeline(recipe, run)
    node = next(node for node in pipeline.nodes if node.name == "teacher")
    pipeline.started(node, StageStatus(done=False, reason="", fingerprint="of the stage", inputs={}))
    with pytest.raises(ConfigError, match="final_ratio is 0"):
        check_start(recipe, run)
    pipeline.ended(node, "done")
    check_start(recipe, run)
