"""`chorus shards stats`: what lies in a split, and what a run would make of it."""

import json

import numpy as np
import pytest
import soundfile

from data.audio import Clip, Utterance
from data.shards.writer import write_split
from launcher.cli import main as chorus


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Twenty utterances of a second, one of 40 s, and one that says far more than its half second holds."""
    folder = tmp_path_factory.mktemp("stats")
    noise = np.random.default_rng(1)
    lengths_s = [1.0] * 20 + [40.0, 0.5]
    texts = ["one two"] * 20 + ["too long", "aa" * 30]
    utterances = []
    for number, (seconds, text) in enumerate(zip(lengths_s, texts, strict=True)):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * noise.standard_normal(round(16000 * seconds)), 16000)
        utterances.append(Utterance(path.stem, (Clip(path),), text, "train"))
    write_split(utterances, folder / "train", sample_rate_hz=16000, shard_seconds=5, seed=1)
    return folder / "train"


def plan_of(capsys, split, *options):
    assert chorus(["shards", "stats", str(split), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["train"]["plan"]


def test_the_plan_of_a_run_is_shown_with_what_it_leaves_out_and_why(capsys, split):
    plan = plan_of(capsys, split)
    assert plan["excluded"] == {"too long": 1, "too short": 0, "infeasible for CTC": 1}
    assert (plan["utterances"], plan["lanes"], plan["seconds"]) == (20, 8, 60.0)
    assert plan["steps_per_epoch"] == 1
    assert 0 < plan["neighbours_expected"] < 1


def test_lanes_seconds_and_pools_can_be_tried(capsys, split):
    one_by_one = plan_of(capsys, split, "--lanes", "6", "--seconds", "1")
    assert one_by_one["steps_per_epoch"] == 4
    assert one_by_one["empty_micro_batches"] == 4
    assert one_by_one["padding"] == 0
    # In pools of a single shard all neighbours but those between pools are of one shard.
    mixed, unmixed = (plan_of(capsys, split, "--lanes", "1", "--pool-shards", pool) for pool in ("99", "1"))
    assert mixed["neighbours_observed"] < 0.5 < unmixed["neighbours_observed"]


def test_a_split_that_no_run_could_use_is_still_measured(capsys, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000 * 31), 16000)
    utterances = [Utterance("a", (Clip(tmp_path / "a.wav"),), "a", "train")]
    write_split(utterances, tmp_path / "train", sample_rate_hz=16000, shard_seconds=60, seed=1)
    assert "1 too long" in plan_of(capsys, tmp_path / "train")["refused"]


def test_settings_that_no_run_could_have_are_refused(capsys, split):
    assert chorus(["shards", "stats", str(split), "--lanes", "0"]) == 2
    assert "chorus shards stats: lanes is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--html", "page.html"), ("--lanes", "4"), ("--seconds", "9"), ("--pool-shards", "2")]
)
def test_options_of_shards_are_refused_for_the_recipe_of_a_mixture_and_not_passed_over(capsys, split, tmp_path, option):
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(f"extends: mini\nname: mixed\ncorpus: {{mix: [{{shards: {split.parent}}}]}}\n")
    assert chorus(["shards", "stats", str(recipe), *option]) == 2
    message = capsys.readouterr().err
    assert f"{option[0]} is given with the recipe" in message
    assert len(message.splitlines()) == 1


def test_a_split_without_an_utterance_is_one_clear_error_and_not_intact(capsys, split, tmp_path):
    empty = tmp_path / "train"
    empty.mkdir()
    summary = json.loads((split / "shards.json").read_text(encoding="utf-8"))
    (empty / "shards.json").write_text(json.dumps(summary | {"shards": []}), encoding="utf-8")
    (empty / "transcripts.jsonl").touch()
    columns = np.load(split / "index.npz")
    np.savez(empty / "index.npz", **{name: column[:0] for name, column in columns.items()})
    for options in ((), ("--html", str(tmp_path / "page.html"))):
        assert chorus(["shards", "stats", str(empty), *options]) == 3
        message = capsys.readouterr().err
        assert f"The split at {empty} has no utterance" in message
        assert len(message.splitlines()) == 1
    assert chorus(["shards", "verify", str(empty)]) == 3
    assert f"{empty} has no utterance" in capsys.readouterr().out
