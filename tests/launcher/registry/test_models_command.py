"""Models that runs left, and names that stand for them."""

import json
import threading
from pathlib import Path

import pytest
from run_folders import write_model, write_results, write_run

from launcher import cli
from launcher.commands.serve import name_models
from launcher.errors import CheckpointError, ConfigError
from launcher.inference import model_lookup
from launcher.inference.model_lookup import find_model
from launcher.registry.promotions import promote, read_promotions


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write_run(tmp_path / "runs" / "first", done=100, stages=("teacher", "student"))
    write_results(first, {"student": {"parameters": 1200, "test": {"cer": 0.05, "wer": 0.25}}})
    write_run(tmp_path / "runs" / "team" / "second", done=50, stages=("teacher", "student"))
    return tmp_path / "runs"


def listed(capsys, *words):
    assert cli.main(["models", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_models_of_finished_stages_are_listed_with_errors_sizes_lineage_and_hash(runs, capsys):
    models = {model["name"]: model for model in listed(capsys)["models"]}
    # The student of the second run is half trained.
    assert list(models) == ["runs/first/teacher", "runs/first/student", "runs/team/second/teacher"]
    student = models["runs/first/student"]
    assert student["error_rates"] == {"test": {"cer": 0.05, "wer": 0.25}}
    assert student["parameters"] == 1200
    assert student["size_bytes"] == len("student") + len("{}")
    assert student["made_from"]["corpus/train"] == "c" * 64
    assert len(student["sha256"]) == 64
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "test 5.0% / 25.0%" in text
    assert student["sha256"][:12] in text


def test_a_promoted_model_is_found_by_its_name_and_served_under_it(runs, capsys):
    assert cli.main(["models", "promote", "runs/first/student", "production"]) == 0
    folder = runs / "first" / "student" / "model"
    assert find_model("production") == folder
    assert find_model("models/production") == folder
    assert name_models(["production"]) == {"production": folder}
    assert name_models(["live=production"]) == {"live": folder}
    capsys.readouterr()
    answer = listed(capsys, "runs/first")
    assert answer["names"]["production"]["model"] == str(folder)
    assert [model["names"] for model in answer["models"]] == [[], ["production"]]


def test_a_name_keeps_the_history_of_what_it_stood_for(runs, capsys):
    assert cli.main(["models", "promote", "runs/first/teacher", "production", "--note", "first one"]) == 0
    assert cli.main(["models", "promote", "runs/first/student", "production"]) == 0
    assert "Before: " in capsys.readouterr().out
    assert cli.main(["models", "history", "production", "--json"]) == 0
    promotions = json.loads(capsys.readouterr().out)["promotions"]
    assert [Path(promotion["model"]).parent.name for promotion in promotions] == ["teacher", "student"]
    assert promotions[0]["note"] == "first one"
    assert cli.main(["models", "history", "production"]) == 0
    table = capsys.readouterr().out
    assert table.index("student") < table.index("teacher")


def test_promotions_at_the_same_time_all_stay_in_the_history(runs):
    folders = [runs / "first" / "teacher" / "model", runs / "first" / "student" / "model"] * 8
    threads = [threading.Thread(target=promote, args=(folder, "x", "production")) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    promotions = read_promotions(Path("models/production"))
    assert sorted(promotion.model for promotion in promotions) == sorted(map(str, folders))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: (model / "model.safetensors").write_text("other"), "is another one"),
        (lambda model: (model / "more.json").write_text("{}"), "is another one"),
        (lambda model: model.rename(model.with_name("moved")), "there is none any more"),
    ],
)
def test_a_name_never_stands_for_a_model_that_changed_since(runs, change, message):
    model = runs / "first" / "student" / "model"
    promote(model, "x", "production")
    change(model)
    with pytest.raises(CheckpointError, match=message):
        find_model("production")


def test_a_model_that_is_not_what_its_stage_left_is_not_promoted(runs, capsys):
    (runs / "first" / "student" / "model" / "model.safetensors").write_text("other")
    assert cli.main(["models", "promote", "runs/first/student", "production"]) == 4
    assert "not what its stage has left" in capsys.readouterr().err
    assert not Path("models/production").exists()


def test_a_folder_of_no_run_may_be_promoted(runs):
    write_model(Path("bought"), "weights")
    assert cli.main(["models", "promote", "bought", "vendor"]) == 0
    assert find_model("vendor") == Path("bought").absolute()


@pytest.mark.parametrize("name", ["../production", "a/b", "-x", ".hidden", "two words", "", "x" * 300])
def test_a_name_that_would_lead_elsewhere_is_refused(runs, name, capsys):
    assert cli.main(["models", "promote", "runs/first/student", "--", name]) == 2
    assert "cannot be the name of a model" in capsys.readouterr().err


def test_the_name_of_a_model_of_the_package_is_refused(runs, monkeypatch, capsys):
    write_model(Path("packaged/aelita"), "weights")
    monkeypatch.setattr(model_lookup, "PACKAGED_MODELS", Path("packaged"))
    assert cli.main(["models", "promote", "runs/first/student", "aelita"]) == 2
    assert "comes with Chorus" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 9, "promotions": []}',
        '{"format": 1, "promotions": []}',
        '{"format": 1, "promotions": [{"model": "x"}]}',
        '{"format": 1, "promotions": [{"model": "x", "sha256": "", "source": "", "note": "", "time": 1}]}',
    ],
)
def test_a_torn_or_foreign_file_of_names_is_said_and_never_followed(runs, content):
    Path("models").mkdir()
    Path("models/production").write_text(content)
    with pytest.raises(ConfigError, match="production"):
        find_model("production")
    # Nor is a promotion written over it.
    with pytest.raises(ConfigError):
        promote(runs / "first" / "student" / "model", "x", "production")
    assert Path("models/production").read_text() == content


def test_a_file_that_is_no_name_of_a_model_is_called_what_it_is(runs):
    Path("notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="holds no finished model"):
        find_model("./notes.txt")


def test_a_run_that_is_torn_does_not_hide_the_models_of_others(runs, capsys):
    (runs / "team" / "second" / "state.json").write_text("{")
    answer = listed(capsys)
    assert len(answer["models"]) == 2
    assert len(answer["problems"]) == 1


@pytest.mark.parametrize("words", [["promote", "runs/first/student"], ["history"], ["history", "none"], ["nowhere"]])
def test_words_that_are_not_understood_are_told_in_a_sentence(runs, words, capsys):
    assert cli.main(["models", *words]) == 2
    assert capsys.readouterr().err.startswith("chorus: ")
