"""The built-in recipes of public corpora: their plans on 8 GPUs, and the commands in their comments."""

import itertools
import json
import re
import shlex

import pytest

from launcher.cli import main as chorus
from launcher.recipe import load_recipe
from launcher.recipe.loading import BUILT_IN_RECIPES

RECIPES = {
    "librispeech-100": ("librispeech", {"test-clean", "test-other"}),
    "librispeech-960": ("librispeech", {"test-clean", "test-other"}),
    "aishell": ("aishell", {"test"}),
    "common-voice": ("common_voice", {"test"}),
    "gigaspeech": ("gigaspeech", {"test"}),
}


def commands(name: str) -> list[list[str]]:
    """The words of every `chorus run` in the comments of a recipe."""
    text = (BUILT_IN_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    comments = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    lines = comments.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("chorus run ")]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_of_a_corpus_plans_its_stages_on_eight_processes(name, tmp_path, capsys):
    corpus, splits = RECIPES[name]
    recipe = load_recipe(name, [f"corpus.root={tmp_path}"])
    assert recipe.corpus.name == corpus
    assert {stage.split for stage in recipe.stages if stage.kind == "evaluate"} == splits
    root = ["--set", f"corpus.root={tmp_path}", "--run-dir", str(tmp_path / "run")]
    assert chorus(["plan", name, *root, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["stages"]][:4] == ["prepare", "tokenizer", "teacher", "student"]
    assert "--num_gpus=8" in plan["stages"][2]["commands"][0]["command"]
    teacher, student = plan["stages"][2:4]
    assert teacher["encoder_parameters"] > 2 * student["encoder_parameters"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_in_the_comments_of_a_recipe_are_right(name):
    overrides = []
    for words in commands(name):
        assert words[2] == name
        given = [value for option, value in itertools.pairwise(words) if option == "--set"]
        if "--processes" in words:
            given.append("cluster.processes=1")
        overrides.append(given)
    eight, one = (load_recipe(name, given) for given in (overrides[0], overrides[-1]))
    assert (eight.cluster.processes, one.cluster.processes) == (8, 1)
    assert one.batches.lanes * 4 == eight.batches.lanes
    for stage, alone in zip(eight.training_stages(), one.training_stages(), strict=True):
        assert alone.optimizer.peak_learning_rate == stage.optimizer.peak_learning_rate / 2
        assert re.fullmatch("teacher|student", stage.name)
