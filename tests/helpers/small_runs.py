"""Little real speech, and a recipe that trains a small shared-expert student on it."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.shards.writer import write_split
from data.text.tokenizer import Tokenizer
from launcher.inference.finished_model import write_finished_model
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from model.recognizer import Recognizer

STAGE = "student"
SPLITS = {"train": 60, "dev": 4}


def write_shards(folder: Path) -> Path:
    """Some phrases of the embedded corpus as shards."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    for split, number in SPLITS.items():
        utterances = [utterance for utterance in selected if utterance.split == split][:number]
        write_split(utterances, folder / split, sample_rate_hz=16000, shard_seconds=20, seed=1, workers=1)
    return folder


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
        # Tests of the trial ask for it: before every small training it would take seconds of all of them together.
        "cluster": {"processes": 2, "expert_parallel": 2, "precision": "fp32", "try_memory": False},
    }


def write_teacher(run: RunFolder, folder: Path, seed: int = 8, **encoder: Any) -> None:
    """The finished model of a teacher that has learnt nothing: the student's, but for its encoder."""
    recipe = load_recipe(run.recipe_file)
    config = recipe.recognition_stage(STAGE).model
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update=encoder)})
    torch.manual_seed(seed)
    model = Recognizer(config, recipe.features.mel_bins, Tokenizer.load(run.tokenizer).vocabulary_size)
    write_finished_model(folder, run, config, recipe.features, model.state_dict())


def kill_everything(launcher: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all it has started, as when a machine goes down."""
    tree = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGKILL)
    launcher.wait()
    psutil.wait_procs(tree, timeout=10)
