"""A stage of kind adapt: what is trained is counted and bounded, and what does not go together is refused."""

from typing import Any

import pytest
import yaml
from small_models import write_small_model

from data.errors import DataError
from launcher.errors import CheckpointError, ConfigError
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.recipe import Recipe, check_model_folders, dump, load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.pipeline import build_pipeline
from launcher.stages.settings import training_settings
from model.adapters import AdaptersConfig


def write_recipe(folder, stage: dict[str, Any], **others: Any):
    """A recipe whose last stage adapts a teacher that is trained before it, or what `base` names."""
    encoder = {"layers": 6, "groups": 1, "width": 64, "heads": 2, "feedforward_width": 128, "experts": {"count": 2}}
    teacher = {"name": "teacher", "kind": "pretrain", "steps": 4, "model": {"encoder": encoder}}
    adapted = {"name": "speaker", "kind": "adapt", "base": "teacher", "steps": 4, **stage}
    values = {
        "name": "small",
        "corpus": {"name": "shards", "shards": str(folder / "shards")},
        "batches": {"lanes": 2, "seconds": 6},
        "stages": [teacher, adapted] if adapted["base"] == "teacher" else [adapted],
        **others,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def read(folder, adapt: dict[str, Any], **stage: Any) -> Recipe:
    return load_recipe(write_recipe(folder, {"adapt": adapt, **stage}))


def test_the_model_is_that_of_the_base_with_the_adapters(tmp_path):
    recipe = read(tmp_path, {"method": "lora", "rank": 2, "parts": ["attention"]})
    model = recipe.recognition_stage("speaker").model
    assert model.encoder.adapters == AdaptersConfig(kind="lora", rank=2, parts=("attention",))
    assert model.encoder.model_copy(update={"adapters": None}) == recipe.recognition_stage("teacher").model.encoder
    # What a run keeps loads again to the same.
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump(recipe))
    assert load_recipe(kept) == recipe
    changed = load_recipe(kept, ["stages.speaker.adapt.rank=3"], of_run=True)
    assert changed.recognition_stage("speaker").model.encoder.adapters == AdaptersConfig(
        kind="lora", rank=3, parts=("attention",)
    )


def test_the_model_is_that_of_a_folder_wherever_it_lies(tmp_path, monkeypatch):
    base = write_small_model(tmp_path / "base", "one layer")
    monkeypatch.chdir(tmp_path)
    recipe = read(tmp_path, {"method": "norms"}, base="./base")
    assert recipe.recognition_stage("speaker").model.encoder.width == 16
    assert recipe.stage("speaker").base == str(base)
    nodes = {node.name: node for node in build_pipeline(recipe)}
    # Its tokenizer and its features are those of the folder.
    assert "tokenizer" not in nodes
    assert nodes["speaker"].inputs == ("corpus/train", str(base))


@pytest.mark.parametrize(
    ("adapt", "expected"),
    [
        # 6 layers x 2 bottlenecks x (2 x 64 x 4 + 4), or 1 block.
        ({"method": "bottleneck"}, 6 * 2 * (2 * 64 * 4 + 4)),
        ({"method": "bottleneck", "scope": "block"}, 2 * (2 * 64 * 4 + 4)),
        # 6 layers x rank 2 x (64 + 192 and 64 + 64).
        ({"method": "lora", "rank": 2, "parts": ["attention"]}, 6 * 2 * (256 + 128)),
        # 6 layers x (6 norms x 2 x 64 and a router of 2 x 64).
        ({"method": "norms"}, 6 * (6 * 2 * 64 + 2 * 64)),
    ],
)
def test_a_plan_counts_what_is_trained(tmp_path, adapt, expected):
    recipe = read(tmp_path, {**adapt, "max_trained_share": 0.5})
    stages = plan_table(recipe, RunFolder(tmp_path / "run"), [1], machine_of(recipe.cluster, [1]))["stages"]
    row = stages["speaker"]
    assert row["trained_parameters"] == expected
    assert row["parameters"] - row["frozen_parameters"] == expected
    assert row["trained_share"] == pytest.approx(expected / stages["teacher"]["parameters"])
    if adapt["method"] != "norms":
        assert row["parts"]["adapters"]["unique"] == expected


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"method": "everything"}, r"100\.00% of those of its base.*max_trained_share is 0\.1\. Take method lora"),
        ({"method": "lora", "rank": 64}, r"Stage speaker would train .* values, .*Lower adapt\.rank"),
        ({"method": "lora", "outputs": True, "max_trained_share": 0.01}, "would train"),
        ({"method": "norms", "rank": 8}, "the method norms has no adapters"),
        ({"method": "everything", "max_trained_share": 1, "norms": True}, "the method everything has no adapters"),
        ({"method": "bottleneck", "parts": ["attention"]}, "bottlenecks stand beside feed-forward layers alone"),
        ({"method": "lora", "max_degradation": 0.05}, "there is no keep_split to measure it on"),
        ({"method": "prompt"}, "method"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, adapt, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, adapt)
    assert "\n\n" not in str(error.value)


def test_all_of_a_model_is_trained_where_that_share_is_stated(tmp_path):
    recipe = read(tmp_path, {"method": "everything", "max_trained_share": 1})
    assert recipe.recognition_stage("speaker").model.encoder.adapters is None


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"base": "nobody"}, "The base of stage speaker is 'nobody', which is not an earlier training stage"),
        ({"model": {"encoder": {"layers": 3}}}, r"stages\.speaker\.model is given and is not the model of its base"),
        ({"freeze": ["encoder"]}, "nothing is left to train"),
    ],
)
def test_a_stage_that_cannot_adapt_is_refused(tmp_path, stage, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, {"method": "lora"}, **stage)


def test_a_base_that_was_adapted_itself_is_refused(tmp_path):
    path = write_recipe(tmp_path, {"adapt": {"method": "lora", "rank": 1}})
    values = yaml.safe_load(path.read_text())
    values["stages"].append({**values["stages"][1], "name": "again", "base": "speaker"})
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="which has adapters of its own"):
        load_recipe(path)


def test_bottlenecks_beside_a_residual_mixture_are_refused_by_the_stage_that_asks_for_them(tmp_path):
    base = write_small_model(tmp_path / "base", "shared with experts")
    with pytest.raises(ConfigError, match=r"stages\.speaker\.adapt does not fit its base: bottlenecks have no place"):
        read(tmp_path, {"method": "bottleneck", "max_trained_share": 1}, base=str(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "./nowhere"}, "holds no finished model"),
        ({"features": {"mel_bins": 40}}, r"whose features\.mel_bins is 80, and it is 40 in this recipe"),
        ({"keep_split": "./no/shards"}, "no/shards"),
    ],
)
def test_a_base_or_a_former_domain_that_is_not_there_is_refused_before_anything_starts(tmp_path, change, message):
    base = write_small_model(tmp_path / "base", "full")
    adapt: dict[str, Any] = {"method": "norms"}
    if "keep_split" in change:
        adapt["keep_split"] = str(tmp_path / change["keep_split"])
    stage = {"adapt": adapt, "base": change.get("base", str(base))}
    others = {"features": change["features"]} if "features" in change else {}
    recipe = load_recipe(write_recipe(tmp_path, stage, **others))
    with pytest.raises((ConfigError, CheckpointError, DataError), match=message):
        check_model_folders(recipe)


def test_where_base_and_former_domain_lie_is_no_setting_and_what_is_lost_is_one(tmp_path):
    keep = {"method": "lora", "rank": 1, "keep_split": "/elsewhere/dev"}
    recipe = read(tmp_path, keep)
    settings = training_settings(recipe, recipe.training_stage("speaker"))
    assert "base" not in settings
    assert "keep_split" not in settings["adapt"]
    assert settings["adapt"]["max_degradation"] == 0.01
    node = build_pipeline(recipe)[-2]
    assert node.inputs == ("corpus/train", "teacher", "shards /elsewhere/dev")
    # Stages of other kinds have no such keys in their records.
    assert "adapt" not in training_settings(recipe, recipe.training_stage("teacher"))
