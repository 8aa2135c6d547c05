"""A recipe of one's own: begun from any built-in one, with its comments, and refused before anything is written."""

import json

import pytest

from launcher.cli import main
from launcher.recipe import load_recipe
from launcher.recipe.loading import BUILT_IN_RECIPES

BUILT_IN = sorted(path.stem for path in BUILT_IN_RECIPES.glob("*.yaml"))


ELSEWHERE = {"corpus.shards": ("base",), "corpus.manifest": ("ladder-mboshi", "ladder-prompts")}


def place_of_corpus(like, tmp_path):
    """The setting of a place that only the user knows, where the corpus of a built-in recipe needs one."""
    for key, names in ELSEWHERE.items():
        if like in names:
            return [f"{key}={tmp_path}"]
    if like in ("mini", "ladder-aelita"):
        return []
    return [f"corpus.root={tmp_path}"]


@pytest.mark.parametrize(
    ("like", "with_shards"),
    [*((name, False) for name in BUILT_IN), ("mini", True), ("librispeech-100", True), ("ladder-taught", True)],
)
def test_a_recipe_begins_as_any_built_in_one(like, with_shards, tmp_path, capsys):
    folder = tmp_path / "My Talks 2"
    arguments = ["new", str(folder), "--like", like]
    if with_shards:
        arguments += ["--shards", str(tmp_path / "shards")]
    assert main(arguments) == 0
    assert f"chorus plan {folder / 'recipe.yaml'}" in capsys.readouterr().out

    place = place_of_corpus(like, tmp_path)
    model = load_recipe(like, place)
    if with_shards:
        place = []
    recipe = load_recipe(folder / "recipe.yaml", place)
    assert recipe.name == "my-talks-2"
    assert (recipe.stages, recipe.cluster, recipe.augment) == (model.stages, model.cluster, model.augment)
    if with_shards:
        assert recipe.corpus.shards == str(tmp_path / "shards")
    else:
        assert recipe.corpus == model.corpus
    # With its comments, which say why it is as it is.
    comments = [line for line in (BUILT_IN_RECIPES / f"{like}.yaml").read_text().splitlines() if line.startswith("#")]
    text = (folder / "recipe.yaml").read_text()
    assert comments
    assert all(comment in text for comment in comments)


def test_a_manifest_becomes_the_corpus(tmp_path):
    manifest = tmp_path / 'über "all".jsonl'
    manifest.write_text(json.dumps({"audio": "a.wav", "text": "a"}))
    assert main(["new", str(tmp_path / "talks"), "--like", "mini", "--manifest", str(manifest)]) == 0
    assert load_recipe(tmp_path / "talks" / "recipe.yaml").corpus.manifest == manifest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--like", "bse"], "did you mean 'base'?"),
        (["--like", "../base"], "neither a recipe file nor the name of a built-in recipe"),
        (["--manifest", "nowhere.jsonl"], "There is no manifest"),
        (["--manifest", "pyproject.toml", "--shards", "b"], "not both"),
        (["--shards", "https://me:secret@example.org/shards"], "credentials"),
    ],
)
def test_what_would_be_refused_later_is_refused_before_anything_is_written(arguments, said, tmp_path, capsys):
    assert main(["new", str(tmp_path / "talks"), *arguments]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "secret" not in complaint
    assert not (tmp_path / "talks").exists()


def test_what_is_somebodys_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("mine")
    assert main(["new", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\n# \n"])
def test_the_name_of_a_received_recipe_adds_no_setting(tmp_path, end):
    like = tmp_path / f"a{end}cluster: {{processes: 7}}{end}.yaml"
    like.write_text("# A recipe.\nextends: mini\n")
    assert main(["new", str(tmp_path / "mine"), "--like", str(like)]) == 0
    assert load_recipe(tmp_path / "mine" / "recipe.yaml").cluster.processes == load_recipe("mini").cluster.processes


@pytest.mark.parametrize(("content", "problem"), [(b"\xff\xfe", "is not UTF-8"), (b"#\n" * 2**22, "has 8388608 bytes")])
def test_a_received_recipe_that_is_no_text_is_one_paragraph(tmp_path, capsys, content, problem):
    (tmp_path / "a.yaml").write_bytes(content)
    assert main(["new", str(tmp_path / "mine"), "--like", str(tmp_path / "a.yaml")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
