"""A run folder on a little real speech, ready for its training stage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import measure_statistics
from data.reader import ShardReader
from data.shards import read_index, write_split
from data.tokenizer import train_tokenizer
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json

STAGE = "student"
SPLITS = {"train": 60, "dev": 4}


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Some phrases of the embedded corpus as shards."""
    folder = tmp_path_factory.mktemp("shards")
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    for split, number in SPLITS.items():
        utterances = [utterance for utterance in selected if utterance.split == split][:number]
        write_split(utterances, folder / split, sample_rate_hz=16000, shard_seconds=20, seed=1, workers=1)
    return folder


@pytest.fixture(scope="session")
def make_run(shards, tmp_path_factory) -> Callable[..., RunFolder]:
    """Makes run folders of a small shared-expert student; `changes` are recipe overrides."""

    def make(name: str, changes: tuple[str, ...] = ()) -> RunFolder:
        run = RunFolder(tmp_path_factory.mktemp(name))
        recipe_file = run.path / "start.yaml"
        recipe_file.write_text(yaml.safe_dump(recipe_values(shards)))
        write_recipe(run, changes)
        index = read_index(shards / "train")
        recipe = load_recipe(run.recipe_file)
        train_tokenizer(index.transcripts(), recipe.tokenizer, run.tokenizer)
        mean, std = measure_statistics(ShardReader(index), recipe.features, recipe.seed, utterances=20)
        write_json(run.features_file, {"mean": mean.tolist(), "std": std.tolist()})
        return run

    return make


def write_recipe(run: RunFolder, changes: tuple[str, ...]) -> None:
    """Resolve the run's recipe with overrides, as the launcher does before it starts processes."""
    from launcher.recipe import dump

    run.recipe_file.write_text(dump(load_recipe(run.path / "start.yaml", list(changes))))


def recipe_values(shards: Path) -> dict:
    encoder = {
        "layers": 2,
        "groups": 1,
        "width": 32,
        "heads": 2,
        "feedforward_width": 48,
        "kernel_size": 5,
        "subsampling": {"channels": 4},
        "experts": {"count": 2, "router": {"jitter": 0.01, "bias_rate": 0.001}},
    }
    return {
        "name": "small",
        "corpus": {"shards": str(shards)},
        "batches": {"lanes": 4, "seconds": 6},
        "stages": [
            {
                "name": STAGE,
                "kind": "pretrain",
                "model": {"encoder": encoder, "decoder": {"layers": 1, "heads": 2, "feedforward_width": 32}},
                "optimizer": {"peak_learning_rate": 2e-3, "warmup_steps": 4},
                "steps": 16,
                "log_every": 3,
                "validate_every": 8,
                "checkpoint": {"every_steps": 4},
            }
        ],
        "cluster": {"processes": 2, "expert_parallel": 2, "precision": "fp32"},
    }
