"""What a stage declares as used follows from its record in state.json."""

from splits import summary_of

from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json
from launcher.stages.context import StageContext
from launcher.stages.lineage import made_artifacts, used_artifacts


def write_state(run: RunFolder, inputs: dict[str, str]) -> None:
    stages = {
        "tokenizer": {"inputs": {"corpus/train": "aa"}},
        "teacher": {"inputs": {"tokenizer": "bb"}},
        "evaluation": {"inputs": inputs},
    }
    record = {"kind": "", "status": "running", "fingerprint": "", "settings": {}}
    records = {name: record | stage for name, stage in stages.items()}
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": records})


def test_every_kind_of_input_has_a_name_and_a_kind_and_says_what_it_was_made_from(tmp_path):
    run, recipe = RunFolder(tmp_path / "run"), load_recipe("mini")
    language_model, model = tmp_path / "words.arpa", tmp_path / "elsewhere"
    language_model.write_text("n-grams")
    model.mkdir()
    write_json(
        recipe.split_folder(run, "test") / "shards.json",
        summary_of("", ""),
    )
    names = ("corpus/test", "tokenizer", "teacher", str(language_model), str(model))
    fingerprints = [digit * 64 for digit in "12345"]
    write_state(run, dict(zip(names, fingerprints, strict=True)))
    found = list(used_artifacts(StageContext(recipe, run, recipe.stage("evaluation"))))
    assert [(artifact.name, artifact.kind) for artifact in found] == [
        ("mini-shards-test", "shards"),
        ("mini-tokenizer", "tokenizer"),
        ("mini-teacher-model", "model"),
        ("search-444444444444", "search"),
        ("model-555555555555", "model"),
    ]
    assert [artifact.fingerprint for artifact in found] == fingerprints
    assert found[0].content == {"sample_rate_hz": 16000, "shards": 2, "utterances": 6, "seconds": 9.0}
    assert [artifact.content for artifact in found[1:3]] == [
        {"made_from": {"corpus/train": "aa"}},
        {"made_from": {"tokenizer": "bb"}},
    ]


def test_a_stage_without_a_record_or_a_result_declares_nothing(tmp_path):
    run, recipe = RunFolder(tmp_path / "run"), load_recipe("mini")
    assert list(used_artifacts(StageContext(recipe, run, recipe.stage("teacher")))) == []
    assert list(made_artifacts(StageContext(recipe, run, recipe.stage("teacher")))) == []
    assert list(made_artifacts(StageContext(recipe, run, recipe.stage("evaluation")))) == []
